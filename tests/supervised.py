"""Run by the tests of supervision as a process of its own, so that it can be sent signals.

python supervised.py FOLDER SHELL_COMMAND...       one group, of one worker, for each command

A worker's alive.json is expected in its home.
"""

import dataclasses
import json
import sys
from pathlib import Path

from fairseq_codistill.launch.commands import Worker
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import Group, Patience
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.supervise import supervise
from fairseq_codistill.launch.view import LiveView
from fairseq_codistill.records import Ended

RUN = "run"


def nonce(index: int) -> str:
    """The nonce of a group's processes."""
    return f"nonce-{index}"


def leaving_evidence(shell: str, home: Path, index: int) -> str:
    """A command that leaves ended.json when it ends with 0, unless it sets ALONE or NOTHING."""
    ended = Ended(RUN, nonce(index), 1000, "max-update", had_peer=True, expected_peer=True)
    said = json.dumps(dataclasses.asdict(ended))
    (home / "with-peer").parent.mkdir(parents=True, exist_ok=True)
    (home / "with-peer").write_text(said)
    (home / "alone").write_text(said.replace('"had_peer": true', '"had_peer": false'))
    copy = 'test $? = 0 && test -z "$NOTHING" && cp "$HOME/${ALONE:-with-peer}" "$HOME/ended.json"'
    return f"trap '{copy}' EXIT; {shell}"


def groups(
    folder: Path,
    commands: list[list[str]],
    patience: Patience,
    view: LiveView,
    guard: Guard,
    hang_timeout: float = 0.0,
):
    """One group for each list of shell commands, which are its workers'."""

    def group(index: int, shells: list[str]) -> Group:
        home = folder / f"group-{index}"
        shells = [leaving_evidence(shells[0], home, index), *shells[1:]]
        names = ["log.txt", *(f"log-worker-{rank}.txt" for rank in range(1, len(shells)))]

        def start(restarts: int) -> list[Worker]:
            env = {"HOME": str(home), "RESTARTS": str(restarts)}
            return [
                Worker(("sh", "-c", shell), env, home / name)
                for shell, name in zip(shells, names, strict=True)
            ]

        # As of files that say how long it is: with another command it may be longer.
        limits = {"defaults": "\n".join(shells)}
        mark = Finished(home, limits, RUN, nonce(index))
        pulse = Pulse(hang_timeout, home / "alive.json", RUN)
        name, log = f"group {index}", home / "log.txt"
        return Group(name, start, log, patience, view.announce, mark, pulse, guard)

    return [group(index, shells) for index, shells in enumerate(commands)]


if __name__ == "__main__":
    view = LiveView(sys.stdout, every=0.2)
    commands = [[command] for command in sys.argv[2:]]
    patience = Patience(max_restarts=2, backoff=0.05, grace=2.0)
    sys.exit(supervise(groups(Path(sys.argv[1]), commands, patience, view, Guard()), view))
