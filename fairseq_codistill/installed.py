"""What is installed, told from metadata alone: nothing here imports torch or fairseq."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

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
    """Give the commit of this package's folder if it is a git checkout, otherwise None."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(package_folder())]
    # An environment may lie inside an unrelated checkout: ask whether git knows this very file.
    tracked = subprocess.run(
        [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, check=False
    )
    if tracked.returncode != 0:
        return None
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or None
