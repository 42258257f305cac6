"""The shell scripts' commands, as --dry-run prints them, and what they are understood as."""

import importlib
import os
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path

from fairseq import options
from harness import BIN, SEED_STEP, environment

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task
from fairseq_codistill import cli
from fairseq_codistill.vision import diagnostics
from fairseq_codistill.vision.flags import parse

REPO = Path(__file__).parent.parent
EXAMPLES = REPO / "examples"
DATA_SCRIPTS = REPO / "data-bin-scripts"
VISION = "fairseq_codistill.vision"
# Those whose arguments are not read here; what runs them for real does.
PYTHON_SCRIPTS = {"average_checkpoints.py", "evaluate_scores.py"}


def example(line: str, cwd: Path, status: int = 0, timeout: int = 500) -> str:
    """Run a script of examples/, or one named by its path in the repository.

    Gives what it printed, on an error what it complained.
    """
    script, *words = shlex.split(line)
    path = REPO / script if "/" in script else EXAMPLES / script
    done = subprocess.run(
        ["bash", str(path), *words],
        cwd=cwd,
        env=environment(PATH=f"{BIN}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout if status == 0 else done.stderr


def printed(line: str, cwd: Path) -> list[list[str]]:
    """The commands that a script prints with --dry-run, as lists of words."""
    script, rest = (*line.split(" ", 1), "")[:2]
    shown = example(f"{script} --dry-run {rest}", cwd)
    return [shlex.split(line) for line in shown.splitlines() if not line.startswith("#")]


def launched(command: list[str], monkeypatch, capsys) -> list[Namespace]:
    """What each group's first worker in a `codistill launch` command understands."""
    assert command[:2] == ["codistill", "launch"]
    # GPUs or not: what is printed must not depend on this machine's.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["launch", "--print", *command[2:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    workers = [
        shown for note, shown in zip(lines, lines[1:], strict=False) if note.endswith("worker 0")
    ]
    parsed = []
    for worker in workers:
        words = shlex.split(worker)
        if VISION in words:
            parsed.append(parse(words[words.index(VISION) + 1 :]))
            continue
        words = words[words.index("fairseq-train") + 1 :]
        parsed.append(options.parse_args_and_arch(options.get_training_parser(), words))
    return parsed


def understood(command: list[str], tmp_path: Path, monkeypatch, capsys) -> str:
    """Have a printed command read by the program that it starts; gives that one's name."""
    program = Path(command[1]).name if command[0] in ("bash", "python") else command[0]
    if command[:2] == ["codistill", "launch"]:
        each = launched(command, monkeypatch, capsys)
        assert len({args.save_dir for args in each}) == len(each)
        assert [args.seed - each[0].seed for args in each] == [
            SEED_STEP * group for group in range(len(each))
        ]
    elif command[:2] == ["codistill", "report"]:
        cli._parser().parse_args(command[1:])
    elif command[:3] == ["python", "-m", f"{VISION}.diagnostics"]:
        diagnostics.parser().parse_args(command[3:])
    elif program == "torchrun" or command[:3] == ["python", "-m", VISION]:
        parse(command[command.index(VISION) + 1 :])
    elif program == "fairseq-generate":
        args = options.parse_args_and_arch(options.get_generation_parser(), command[1:])
        assert args.required_batch_size_multiple == 1
    elif program == "fairseq-preprocess":
        options.get_preprocessing_parser().parse_args(command[1:])
    elif command[0] == "bash":
        script = str(Path(command[1]).relative_to(REPO))
        inner = printed(shlex.join([script, *command[2:]]), tmp_path)
        assert inner
        for one in inner:
            understood(one, tmp_path, monkeypatch, capsys)
    elif Path(command[1]).parent == DATA_SCRIPTS:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(DATA_SCRIPTS)
            importlib.import_module(program.removesuffix(".py")).parse_args(command[2:])
    else:
        assert program in PYTHON_SCRIPTS, command
    return program
