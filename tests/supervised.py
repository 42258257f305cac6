"""Run by the tests of supervision as a process of its own, so that it can be sent signals.

python supervised.py FOLDER SHELL_COMMAND...       one group, of one worker, for each command

A worker's alive.json is expected in its home.
"""

import sys
from pathlib import Path

from fairseq_codistill.launch.commands import Worker
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import Group, Patience
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.progress import LiveView
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.supervise import supervise


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
        names = ["log.txt", *(f"log-worker-{rank}.txt" for rank in range(1, len(shells)))]

        def start(restarts: int) -> list[Worker]:
            env = {"HOME": str(home), "RESTARTS": str(restarts)}
            return [
                Worker(("sh", "-c", shell), env, home / name)
                for shell, name in zip(shells, names, strict=True)
            ]

        mark = Finished(home, shells)
        pulse = Pulse(hang_timeout, home / "alive.json", "run")
        name, log = f"group {index}", home / "log.txt"
        return Group(name, start, log, patience, view.announce, mark, pulse, guard)

    return [group(index, shells) for index, shells in enumerate(commands)]


if __name__ == "__main__":
    view = LiveView(sys.stdout, every=0.2)
    commands = [[command] for command in sys.argv[2:]]
    patience = Patience(max_restarts=2, backoff=0.05, grace=2.0)
    sys.exit(supervise(groups(Path(sys.argv[1]), commands, patience, view, Guard()), view))
