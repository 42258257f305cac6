"""``python -m fairseq_codistill.vision``: from the command line to the exit status."""

import sys
from collections.abc import Sequence

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.sentences import errors_as_sentences


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or tell what training would do; give the exit status."""
    with errors_as_sentences():
        _check_torchvision()
        # Only now: it imports torchvision.
        from fairseq_codistill.vision import program

        program.run(sys.argv[1:] if arguments is None else arguments)
    return 0


def _check_torchvision() -> None:
    """See that the one package is there that is no part of an ordinary installation.

    Raises:
        ConfigError: if it is not.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ConfigError(
            "python -m fairseq_codistill.vision needs torchvision, which is not installed; "
            'pip install "fairseq-codistill[vision]"'
        ) from error


if __name__ == "__main__":
    sys.exit(main())
