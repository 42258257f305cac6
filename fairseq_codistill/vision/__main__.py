"""``python -m fairseq_codistill.vision``: from the command line to the exit status."""

import sys
from collections.abc import Sequence

from fairseq_codistill.sentences import errors_as_sentences
from fairseq_codistill.vision.needs import check_torchvision


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or tell what training would do; give the exit status."""
    with errors_as_sentences():
        check_torchvision("python -m fairseq_codistill.vision")
        # Only now: it imports torchvision.
        from fairseq_codistill.vision import program

        program.run(sys.argv[1:] if arguments is None else arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
