"""``codistill doctor``: what is installed, what will not work, and what to do about it.

What has to be imported to be judged is imported in a process of its own: a broken library may end
the process, and this one must live to tell.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fairseq_codistill import installed

OK, MISSING, BROKEN = "ok", "missing", "broken"
OLDEST_PYTHON = (3, 11)

_LIBRARIES = {
    "hydra-core": "hydra",
    "omegaconf": "omegaconf",
    "numpy": "numpy",
    "sacrebleu": "sacrebleu",
    "sentencepiece": "sentencepiece",
    "safetensors": "safetensors.torch",
    "fsspec": "fsspec",
}
_EXTRAS = {
    "torchvision": "the vision entry point",
    "matplotlib": "the plots of codistill report",
    "s3fs": "an exchange in S3",
}
_TORCH_PROBE = """
import torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(", ".join(gpus) or "no CUDA device: CPU only")
"""
_PLUGIN_PROBE = """
import argparse, sys
from fairseq import utils
utils.import_user_module(argparse.Namespace(user_dir=sys.argv[1]))
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.tasks import TASK_REGISTRY
TASK_REGISTRY["codistill_translation"], CRITERION_REGISTRY["codistill_cross_entropy"]
"""


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: what was looked at.
        state: ``ok``, ``missing`` or ``broken``.
        detail: a version, a path, or what went wrong.
        remedy: what to do.
        needed: whether training needs it.
    """

    what: str
    state: str
    detail: str = ""
    remedy: str = ""
    needed: bool = True


def doctor() -> int:
    """Print the table; give 1 if something that training needs is missing or broken, else 0."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        optional = "" if finding.needed or finding.state == OK else "(optional)"
        words = " ".join(filter(None, [finding.detail, optional]))
        print(f"{finding.what:<{width}}  {finding.state:<7}  {words}".rstrip())
        if finding.remedy:
            print(f"{'':<{width}}           -> {finding.remedy}")
    return int(any(finding.needed and finding.state != OK for finding in findings))


def examine() -> list[Finding]:
    """Look at everything."""
    return [
        _python(),
        _fairseq(),
        _torch(),
        *(_library(name, module) for name, module in _LIBRARIES.items()),
        *(_extra(name, purpose) for name, purpose in _EXTRAS.items()),
        *(_program(name) for name in ("fairseq-train", "fairseq-hydra-train")),
        _plugin(),
        _threads(),
    ]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("Python", OK, version)
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding("Python", BROKEN, version, f"make an environment with Python {oldest} or newer")


def _fairseq() -> Finding:
    has_wheels = (sys.platform, platform.machine()) == ("linux", "x86_64") and (
        (3, 11) <= sys.version_info[:2] < (3, 13)
    )
    pip_install = "pip install " + (
        "ve-fairseq==0.12.3" if has_wheels else "fairseq-fixed==0.12.3.1"
    )
    found = installed.fairseq_distributions()
    names = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return Finding("fairseq", MISSING, remedy=pip_install)
    remove = f"pip uninstall {' '.join(found)}; {pip_install}"
    if len(found) > 1:
        return Finding("fairseq", BROKEN, f"{names}: they overwrite each other", remove)
    error = _complaint("import fairseq")
    if error is not None:
        return Finding("fairseq", BROKEN, f"{names}: {error}", remove)
    return Finding("fairseq", OK, names)


def _torch() -> Finding:
    version = installed.version_of("torch")
    if version is None:
        return Finding("torch", MISSING, remedy="pip install 'torch>=2.6'")
    probe = _probe(_TORCH_PROBE)
    if probe.returncode != 0:
        remedy = "pip install --force-reinstall 'torch>=2.6'"
        return Finding("torch", BROKEN, f"{version}: {_last_line(probe.stderr)}", remedy)
    return Finding("torch", OK, f"{version}; {probe.stdout.strip()}")


def _library(name: str, module: str) -> Finding:
    version = installed.version_of(name)
    if version is None:
        return Finding(name, MISSING, remedy=f"pip install {name}")
    error = _complaint(f"import {module}")
    if error is not None:
        return Finding(name, BROKEN, f"{version}: {error}", f"pip install --force-reinstall {name}")
    return Finding(name, OK, version)


def _extra(name: str, purpose: str) -> Finding:
    version = installed.version_of(name)
    if version is None:
        return Finding(name, MISSING, f"for {purpose}", f"pip install {name}", needed=False)
    return Finding(name, OK, version, needed=False)


def _program(name: str) -> Finding:
    path = shutil.which(name)
    if path is not None:
        return Finding(name, OK, path)
    folder = Path(sys.executable).parent
    beside = shutil.which(name, path=str(folder))
    if beside is not None:
        return Finding(name, OK, f"{beside}, not on PATH", f"export PATH={folder}:$PATH")
    return Finding(name, MISSING, "not on PATH", "activate the environment that has fairseq")


def _plugin() -> Finding:
    folder = installed.package_folder()
    error = _complaint(_PLUGIN_PROBE, str(folder))
    if error is not None:
        return Finding("--user-dir", BROKEN, f"{folder}: {error}", "put right what is broken above")
    return Finding("--user-dir", OK, str(folder))


def _threads() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return Finding("cores", OK, f"{os.cpu_count()}; OMP_NUM_THREADS {threads}", needed=False)


def _probe(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def _complaint(code: str, *arguments: str) -> str | None:
    """Run ``code``; give None if it went well, otherwise what it died of."""
    probe = _probe(code, *arguments)
    if probe.returncode == 0:
        return None
    return _last_line(probe.stderr) or f"ended with status {probe.returncode}"


def _last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "")
