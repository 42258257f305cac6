"""What the programs for images need beyond an ordinary installation."""

from fairseq_codistill.codistillation import ConfigError


def check_torchvision(program: str) -> None:
    """See that torchvision is there, before anything imports it.

    Args:
        program: what was started, as a user would type it.

    Raises:
        ConfigError: if it is not.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ConfigError(
            f"{program} needs torchvision, which is not installed; "
            'pip install "fairseq-codistill[vision]"'
        ) from error
