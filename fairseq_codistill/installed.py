"""What is installed, told from metadata alone: nothing here imports torch or fairseq."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

# git may wait for a file system.
GIT_SECONDS = 10.0

# One import name, three distributions; see setup.py for which suits which Python.
FAIRSEQ_DISTRIBUTIONS = ("ve-fairseq", "fairseq-fixed", "fairseq")


def version_of(distribution: str) -> str | None:
    """Give the installed version of ``distribution``, or None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def fairseq_distributions() -> dict[str, str]:
    """Give every installed distribution that provides ``import fairseq``, with its version."""
    versions = {name: version_of(name) for name in FAIRSEQ_DISTRIBUTIONS}
    return {name: version for name, version in versions.items() if version is not None}


def package_folder() -> Path:
    """Give the folder of this package, which is what fairseq takes as ``--user-dir``."""
    return Path(__file__).resolve().parent


def git_commit() -> str | None:
    """Return the commit of this package's directory if it is a git checkout, otherwise None."""
    # An environment may lie inside an unrelated checkout: ask whether git knows this very file.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("rev-parse", "HEAD") or None


def _git(*arguments: str) -> str | None:
    """Return what git says of this package's directory; None if it says nothing in time."""
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(package_folder()), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=GIT_SECONDS
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
