"""What ``codistill export`` does, step by step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairseq_codistill.errors import UserError

FORMATS = ("fairseq", "ctranslate2")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        checkpoint: the checkpoint to export.
        new: where to write the result.
        format: one of ``FORMATS``.
        user_dir: the user's own user directory, which registers an architecture; or None.
        data: for ctranslate2: the directory with the dictionaries.
        source_lang: for ctranslate2: the source language, if the checkpoint does not tell.
        target_lang: the same of the target language.
    """

    checkpoint: Path
    new: Path
    format: str = "fairseq"
    user_dir: Path | None = None
    data: Path | None = None
    source_lang: str | None = None
    target_lang: str | None = None


def export(options: Options) -> str:
    """Export a checkpoint, and return a sentence on what was written.

    Raises:
        UserError: if an option is wrong, or the model cannot be exported.
    """
    _check(options)
    # Here and below: torch and fairseq take seconds to import, and a wrong option is told before.
    from fairseq_codistill.export.checkpoint import read

    checkpoint = read(options.checkpoint, own_only=options.format == "fairseq")

    from fairseq_codistill.export import to_ctranslate2, verify
    from fairseq_codistill.export.trained import trained_model

    trained = trained_model(checkpoint, options.user_dir)
    with _workspace(options.new) as directory:
        if options.format == "ctranslate2":
            to_ctranslate2.convert(trained, options, directory / "model")
            written, said = directory / "model", "CTranslate2 loads it"
        else:
            written = directory / "model.pt"
            verify.write_what_stock_fairseq_loads(trained, written)
            said = "fairseq loads it without the plugin"
        os.replace(written, options.new)
    return f"{options.new} is written: {said}, and it gives the outputs of the trained model"


def _check(options: Options) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    new = options.new
    try:
        new.lstat()
        raise UserError(f"NEW {new} is already there; remove it or choose another name")
    except (FileNotFoundError, NotADirectoryError):
        place = _nearest(new)
    except (OSError, ValueError) as error:
        raise _unwritable(new, error) from error
    if not place.is_dir():
        raise _unwritable(new, NotADirectoryError(f"{place} is not a directory"))
    given = {"--data": options.data, "-s": options.source_lang, "-t": options.target_lang}
    if options.format != "ctranslate2":
        for flag, value in given.items():
            if value is not None:
                raise UserError(f"{flag} {value} belongs to --format ctranslate2; leave it out")
        return
    if options.data is None:
        raise UserError(
            "--format ctranslate2 needs --data DATA_BIN, the directory with the dictionaries "
            "(dict.<language>.txt) that the model was trained with"
        )
    if not options.data.is_dir():
        raise UserError(f"--data {options.data} is not a directory; give the one of training")


def _nearest(path: Path) -> Path:
    """Return the nearest parent of ``path`` that is there."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


@contextmanager
def _workspace(new: Path) -> Iterator[Path]:
    """Make a temporary directory beside ``new``; what fails to be written is a UserError."""
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{new.name[:100]}.", dir=new.parent) as directory:
            yield Path(directory)
    except (OSError, ValueError) as error:
        raise _unwritable(new, error) from error


def _unwritable(new: Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"NEW {new} cannot be written: {reason}; choose another place")
