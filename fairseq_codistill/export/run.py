"""What ``codistill export`` does, step by step."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

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
    try:
        return _export(options)
    except RecursionError as error:
        # Lists in lists in lists, or one that is a part of itself.
        raise UserError(
            f"CHECKPOINT {options.checkpoint} is nested too deeply; give one that training wrote"
        ) from error


def _export(options: Options) -> str:
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
        options.new.parent.mkdir(parents=True, exist_ok=True)
        # Another process may have written it meanwhile.
        _must_be_absent(options.new)
        os.replace(written, options.new)
    return f"{options.new} is written: {said}, and it gives the outputs of the trained model"


def _check(options: Options) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    _must_be_absent(options.new)
    place = _nearest(options.new)
    if not place.is_dir():
        raise _unwritable(options.new, f"{place} is not a directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _unwritable(options.new, f"no permission to write to {place}")
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


def _must_be_absent(new: Path) -> None:
    try:
        new.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise _unwritable(new, error) from error
    raise UserError(f"NEW {new} is already there; remove it or choose another name")


def _nearest(path: Path) -> Path:
    """Return the nearest parent of ``path`` that is there."""
    return next(parent for parent in path.absolute().parents if os.path.lexists(parent))


@contextmanager
def _workspace(new: Path) -> Iterator[Path]:
    """Make a temporary directory on the disk of ``new``; failing to write is a UserError.

    It is in a directory that is there already: what is refused leaves nothing behind.
    """
    try:
        with (
            _signals_as_exits(),
            tempfile.TemporaryDirectory(
                prefix=".codistill-export-", dir=_nearest(new)
            ) as directory,
        ):
            yield Path(directory)
    except OSError as error:
        raise _unwritable(new, error) from error


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, of a closed terminal, end the process by way of ``SystemExit``.

    What is temporary is then removed.  Nothing is changed where somebody else listens to them, and
    off the main thread.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    here = threading.current_thread() is threading.main_thread()
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if here and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _unwritable(new: Path, reason: Exception | str) -> UserError:
    said = getattr(reason, "strerror", None) or reason
    return UserError(f"NEW {new} cannot be written: {said}; choose another place")
