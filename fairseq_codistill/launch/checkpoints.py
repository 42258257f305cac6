"""Which checkpoint a group can continue from, told without torch.

fairseq writes one file and copies it to the others, so a process killed in between leaves a torn
copy.  A checkpoint is a zip archive: a torn one has no index at its end, or a wrong checksum.

    python -m fairseq_codistill.launch.checkpoints SAVE_DIR

does what launch does before it starts a group, for other schedulers: it moves a torn
``checkpoint_last.pt`` away and prints what to give to ``--restore-file``.
"""

from __future__ import annotations

import re
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

LAST = "checkpoint_last.pt"
# What training writes.  An averaged or exported checkpoint beside them is nothing to resume from.
_WRITTEN_BY_TRAINING = re.compile(r"checkpoint(\d+|_\d+_\d+|_best|_last|\.best_.+)\.pt")


@dataclass(frozen=True)
class Resume:
    """How a group (re)starts.

    Attributes:
        checkpoint: the newest loadable checkpoint, or None to start afresh.
        torn: where a torn ``checkpoint_last.pt`` was moved to, or None.
    """

    checkpoint: Path | None = None
    torn: Path | None = None


def is_loadable(path: Path) -> bool:
    """Tell whether ``path`` is a complete checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def find(save_dir: Path) -> Resume:
    """Find the newest loadable checkpoint in ``save_dir``; change nothing."""
    found = [path for path in save_dir.glob("checkpoint*.pt") if _is_from_training(path)]
    # Of two with one time stamp take checkpoint_last.pt, which fairseq loads by itself.
    newest_first = sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name == LAST), reverse=True)
    return Resume(checkpoint=next(filter(is_loadable, newest_first), None))


def prepare(save_dir: Path) -> Resume:
    """As ``find``, and move a torn ``checkpoint_last.pt`` out of fairseq's way; delete nothing."""
    resume = find(save_dir)
    last = save_dir / LAST
    if resume.checkpoint == last or not last.exists() or is_loadable(last):
        return resume
    torn = save_dir / f"{LAST}.torn"
    number = 1
    while torn.exists():
        number += 1
        torn = save_dir / f"{LAST}.torn-{number}"
    last.rename(torn)
    return Resume(checkpoint=resume.checkpoint, torn=torn)


def restore_file(resume: Resume) -> str:
    """Give what fairseq's ``--restore-file`` has to be."""
    # Under this very name fairseq looks in the save-dir, and begins afresh if there is none.
    if resume.checkpoint is None or resume.checkpoint.name == LAST:
        return LAST
    return str(resume.checkpoint)


def _is_from_training(path: Path) -> bool:
    return _WRITTEN_BY_TRAINING.fullmatch(path.name) is not None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fairseq_codistill.launch.checkpoints SAVE_DIR")
    print(restore_file(prepare(Path(sys.argv[1]))))
