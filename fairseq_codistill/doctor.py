"""``codistill doctor``: what is installed, what will not work, and what to do about it.

What has to be imported to be judged is imported in a process of its own, with a limit on its time:
a broken library may end the process or hang, and this one must live to tell.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fairseq_codistill import installed
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.devices import (
    CUDA,
    REMEDY,
    Unusable,
    assign,
    count_by_torch,
    find_gpus,
    list_gpus,
    named,
)
from fairseq_codistill.launch.probe import AT_ONCE, Answer, ask
from fairseq_codistill.launch.torch_devices import interpreter_of

OK, MISSING, BROKEN = "ok", "missing", "broken"
OLDEST_PYTHON = (3, 11)
# Seconds for each thing that is looked at; importing fairseq and torch takes some.
PATIENCE = 60.0

_LIBRARIES = {
    "hydra-core": "hydra",
    "omegaconf": "omegaconf",
    "numpy": "numpy",
    "sacrebleu": "sacrebleu",
    "sentencepiece": "sentencepiece",
    "safetensors": "safetensors.torch",
    "fsspec": "fsspec",
}
# What each is for, and how it is used.
_EXTRAS = {
    "torchvision": (
        "the vision entry point",
        "import torchvision.models, torchvision.datasets, torchvision.transforms.v2",
    ),
    "matplotlib": (
        "the plots of codistill report",
        "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot",
    ),
    "s3fs": ("an exchange in S3", "import s3fs"),
}
_TORCH_PROBE = """
import torch
if torch.version.hip:
    print("for ROCm", torch.version.hip)
elif torch.version.cuda:
    print("for CUDA", torch.version.cuda)
else:
    print("for the CPU only")
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
    """Look at everything, at several things at a time: one that hangs holds up no other."""
    looks: list[Callable[[], Finding]] = [
        _python,
        _fairseq,
        _torch,
        _driver,
        _gpus,
        *(partial(_library, name, module) for name, module in _LIBRARIES.items()),
        *(partial(_extra, name, purpose, code) for name, (purpose, code) in _EXTRAS.items()),
        *(partial(_program, name) for name in ("fairseq-train", "fairseq-hydra-train")),
        _plugin,
        _threads,
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda look: look(), looks))


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
    answer = _ask("import fairseq")
    if answer.trouble:
        return _broken("fairseq", names, answer, remove)
    return Finding("fairseq", OK, names)


def _torch() -> Finding:
    version = installed.version_of("torch")
    if version is None:
        return Finding("torch", MISSING, remedy="pip install 'torch>=2.6'")
    answer = _ask(_TORCH_PROBE)
    if answer.trouble:
        return _broken("torch", version, answer, "pip install --force-reinstall 'torch>=2.6'")
    return Finding("torch", OK, f"{version}; {answer.out.strip()}")


def _driver() -> Finding:
    listing = list_gpus(os.environ)
    if listing.gpus is None:
        return Finding("nvidia-smi", OK, "not there", needed=False)
    if listing.trouble:
        remedy = "see what nvidia-smi -L says; restart or reinstall the driver"
        return Finding("nvidia-smi", BROKEN, listing.trouble, remedy, needed=False)
    return Finding("nvidia-smi", OK, f"lists {listing.gpus} GPU(s)", needed=False)


def _gpus() -> Finding:
    """Compare the GPUs that there should be with torch's count, as launch does.

    Each GPU is asked for by itself: one that is named twice, to be shared, is no mistake here.
    """
    environ, hidden, needed = dict(os.environ), "", True
    python = (sys.executable,)
    try:
        if named(environ, CUDA) == ():
            # What is hidden on purpose keeps nothing from training on the CPU.
            hidden, needed = f"{CUDA} hides every GPU; without it: ", False
            del environ[CUDA]
        found = find_gpus(environ, python)
    except Unusable as error:
        return Finding("GPUs", BROKEN, hidden + error.problem, error.remedy, needed)
    except UserError as error:
        return Finding("GPUs", BROKEN, hidden + str(error), needed=needed)
    names = tuple(dict.fromkeys(found.names))
    if not names:
        return Finding("GPUs", OK, f"{hidden}{found.why}: CPU only")
    each = assign(replace(found, names=names), environ, groups=len(names), workers=1)
    counts = count_by_torch(each, interpreter_of(python, environ), environ)
    unusable = {name: c for name, c in zip(names, counts, strict=True) if not c.devices}
    told = f"{hidden}{found.why}, torch can use {len(names) - len(unusable)}"
    if unusable:
        reason = next(iter(unusable.values())).why
        told += f", not {','.join(unusable)}" + (f" ({reason})" if reason else "")
        return Finding("GPUs", BROKEN, told, REMEDY, needed)
    return Finding("GPUs", OK, told)


def _library(name: str, module: str) -> Finding:
    version = installed.version_of(name)
    if version is None:
        return Finding(name, MISSING, remedy=f"pip install {name}")
    answer = _ask(f"import {module}")
    if answer.trouble:
        return _broken(name, version, answer, f"pip install --force-reinstall {name}")
    return Finding(name, OK, version)


def _extra(name: str, purpose: str, code: str) -> Finding:
    version = installed.version_of(name)
    if version is None:
        return Finding(name, MISSING, f"for {purpose}", f"pip install {name}", needed=False)
    answer = _ask(code)
    if answer.trouble:
        remedy = f"pip install --force-reinstall {name}"
        if name == "torchvision":
            remedy += ", in the version that belongs to this torch"
        return _broken(name, f"{version}, for {purpose}", answer, remedy, needed=False)
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
    answer = _ask(_PLUGIN_PROBE, str(folder))
    if answer.trouble:
        return _broken("--user-dir", str(folder), answer, "put right what is broken above")
    return Finding("--user-dir", OK, str(folder))


def _threads() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return Finding("cores", OK, f"{os.cpu_count()}; OMP_NUM_THREADS {threads}", needed=False)


def _ask(code: str, *arguments: str) -> Answer:
    return ask([sys.executable, "-c", code, *arguments], os.environ, PATIENCE)


def _broken(what: str, detail: str, answer: Answer, remedy: str, needed: bool = True) -> Finding:
    if answer.timed_out:
        remedy = f"it hangs, or its file system is slow: run codistill doctor again, then {remedy}"
    return Finding(what, BROKEN, f"{detail}: {answer.trouble}", remedy, needed)
