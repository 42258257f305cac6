"""How many devices torch sees, asked in processes of their own.

The interpreter that runs the command is asked, where the command tells which one that is: launch
may be of another environment, with another torch or none.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_codistill.launch.probe import Answer, ask_each, last_line
from fairseq_codistill.records import printable

# Seconds.  Importing torch from a network file system that is cold or busy may take a minute.
PATIENCE = 120.0

_MARK = "codistill-devices"
# With a driver that is too old, device_count() still counts what the driver lists; fairseq asks
# is_available() whether to use them.
_COUNT = f"""
import os
import torch
count, why = torch.cuda.device_count(), ""
try:
    torch.cuda.init()
    count = min(count, torch.cuda.device_count())
except Exception as error:
    why = " ".join(str(error).split())
if not torch.cuda.is_available():
    count = 0
print("\\n{_MARK}", count, why, flush=True)
os._exit(0)
"""
_NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
# How pip starts a script whose interpreter has a long path, or one with spaces.
_SHELL_START = re.compile(rb"#!/bin/sh\n'''exec' (?:\"([^\"$]+)\"|'([^']+)'|([^\"'\s]+)) ")


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs a command.

    Attributes:
        argv: it and its options.
        told: whether the command tells that; otherwise it is the one that runs launch.
        module: whether the command is ``python -m``, which imports from the current directory.
    """

    argv: tuple[str, ...]
    told: bool
    module: bool = False

    def __str__(self) -> str:
        """Return its path."""
        return printable(self.argv[0])


@dataclass(frozen=True)
class Count:
    """What torch answered.

    Attributes:
        devices: how many it can use; None if it did not answer.
        why: why there are none, or why it did not answer; may be empty.
        no_torch: whether there is no torch in the environment that was asked.
    """

    devices: int | None
    why: str = ""
    no_torch: bool = False


def interpreter_of(program: Sequence[str], environ: Mapping[str, str]) -> Interpreter:
    """Return the interpreter that runs ``program``, launch's own if that cannot be told.

    Args:
        program: the words that start it, for example ``python -m MODULE`` or ``fairseq-train``.
        environ: the environment that it is started with.
    """
    own = Interpreter((sys.executable,), told=False)
    if not program:
        return own
    if _is_python(program[0]):
        python = shutil.which(program[0], path=environ.get("PATH")) or program[0]
        options = program[1 : program.index("-m")] if "-m" in program else ()
        return Interpreter((python, *options), told=True, module="-m" in program)
    # A program that is not on PATH is started from beside launch's interpreter.
    path = shutil.which(program[0], path=environ.get("PATH")) or shutil.which(
        program[0], path=str(Path(sys.executable).parent)
    )
    words = [] if path is None else _shebang(Path(path))
    return Interpreter(tuple(words), told=True) if words and _is_python(words[0]) else own


def count_devices(interpreter: Interpreter, environs: Sequence[Mapping[str, str]]) -> list[Count]:
    """Ask the interpreter's torch how many devices it can use with each of ``environs``."""
    # As in a script: a file torch.py in the current directory is not imported.
    safe = {} if interpreter.module else {"PYTHONSAFEPATH": "1"}
    argv = [*interpreter.argv, "-c", _COUNT]
    answers = ask_each(argv, [{**environ, **safe} for environ in environs], PATIENCE)
    return [_counted(answer) for answer in answers]


def _counted(answer: Answer) -> Count:
    if answer.trouble:
        return Count(None, answer.trouble, no_torch=last_line(answer.err) == _NO_TORCH)
    found = re.search(rf"^{_MARK} (\d+) ?(.*)$", answer.out, re.MULTILINE)
    if found is None:
        return Count(None, f"answered {printable(last_line(answer.out))!r}, which is no number")
    return Count(int(found[1]), printable(found[2]))


def _is_python(name: str) -> bool:
    return Path(name).name.startswith("python")


def _shebang(script: Path) -> list[str]:
    """Return the interpreter in the first line of ``script`` and its options, if it is a script."""
    try:
        with script.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return []
    through_shell = _SHELL_START.match(start)
    if through_shell is not None:
        return [next(filter(None, through_shell.groups())).decode(errors="surrogateescape")]
    if not start.startswith(b"#!"):
        return []
    try:
        words = shlex.split(start[2:].partition(b"\n")[0].decode(errors="surrogateescape"))
    except ValueError:
        return []
    if words and Path(words[0]).name == "env":
        return words[2:] if words[1:2] == ["-S"] else words[1:]
    return words
