"""``codistill launch`` from its arguments to its exit status."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import changed, checkpoints, record, rewind
from fairseq_codistill.launch.commands import (
    Plan,
    Worker,
    as_shell,
    check_exchanges,
    exchange_address,
    exchange_folder,
    is_lockstep,
    parse_group_flags,
    seeds,
    workers_of,
)
from fairseq_codistill.launch.devices import check, find_devices
from fairseq_codistill.launch.dialects import Dialect, recognise
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import Group, Patience
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.length import limits_of
from fairseq_codistill.launch.process import starts_so_far
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.retry import Retry
from fairseq_codistill.launch.supervise import supervise
from fairseq_codistill.launch.view import LiveView


@dataclass(frozen=True)
class Options:
    """The arguments of ``codistill launch``.

    Attributes:
        groups: number of groups.
        workers_per_group: None for as many as the group has GPUs, or one on CPU.
        out: the run's folder.
        max_restarts: of one group.
        hang_timeout: seconds without an update after which a group counts as dead; 0 for never.
        group_flags: values of ``--group``.
        command: what to run.
        allow_changed: settings that may differ from those of the launch before.
    """

    groups: int
    workers_per_group: int | None
    out: Path
    max_restarts: int
    hang_timeout: float
    group_flags: Sequence[str]
    command: Sequence[str]
    allow_changed: Sequence[str] = ()

    def for_the_record(self) -> list[str]:
        """Give those that decide what is trained, as words of the command line."""
        workers = self.workers_per_group
        return [
            *("--groups", str(self.groups)),
            *(() if workers is None else ("--workers-per-group", str(workers))),
            *(word for flags in self.group_flags for word in ("--group", flags)),
        ]


class Ports:
    """Finds free ports, never the same one twice."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def free(self) -> int:
        """Give a port of this machine that nobody listens at."""
        while True:
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port: int = probe.getsockname()[1]
            if port not in self._given:
                self._given.add(port)
                return port


def show(options: Options) -> int:
    """Print the commands of all workers; start nothing and write nothing."""
    plan = make_plan(options)
    relaunch = changed.changes(plan, record.read(plan.out), options.allow_changed)
    for note in relaunch.notes:
        print(f"# {note}")
    ports = Ports()
    for group in range(plan.groups):
        workers = workers_of(plan, group, ports.free(), checkpoints.find(plan.folder(group)))
        for rank, worker in enumerate(workers):
            print(f"# group {group}, worker {rank}\n{as_shell(worker, os.environ)}")
    return 0


def launch(options: Options) -> int:
    """Run all groups to their end; give the exit status.

    Raises:
        UserError: if something about ``options`` is wrong.
    """
    out = options.out.absolute()
    view = LiveView(sys.stdout, log=out / "launch.log")
    with record.only_launch(out, view.announce):
        plan = make_plan(options)
        relaunch = changed.changes(plan, record.read(out), options.allow_changed)
        for change in relaunch.allowed:
            view.announce(f"goes on with another setting: {change}")
        for note in relaunch.notes:
            view.announce(note)
        plan = replace(plan, dialect=_with_program(plan.dialect))
        for note in check(plan.devices, plan.dialect.program, os.environ):
            view.announce(note)
        ports = Ports()
        starts = [_Start(plan, group, ports, view) for group in range(plan.groups)]
        finished = [
            Finished(plan.folder(i), limits_of(plan.command(i)), plan.run_id, plan.nonces[i])
            for i in range(plan.groups)
        ]
        if relaunch.names and is_lockstep(plan):
            starting = {
                i: start.resume for i, start in enumerate(starts) if not finished[i].reached
            }
            for note in rewind.rewind(plan, starting, relaunch.names):
                view.announce(note)
        who = record.Identity(plan.run_id, plan.nonces)
        first = [start.first for start in starts]
        exchange = exchange_address(plan)
        options_said = options.for_the_record()
        files = changed.files_of(plan)
        written = Retry(
            f"{plan.out / 'launch.json'}",
            lambda: record.write(
                plan.out, who, options.command, first, options_said, exchange, files
            ),
            view.announce,
        )
        written.try_now()
        view.announce(f"run {plan.run_id} in {plan.out}: {plan.groups} group(s), {plan.devices}")
        patience = Patience(max_restarts=options.max_restarts)
        guard = Guard()
        try:
            groups = [
                Group(
                    f"group {i}",
                    start,
                    start.first[0].log,
                    patience,
                    view.announce,
                    finished[i],
                    _pulse(plan, i, options.hang_timeout),
                    guard,
                )
                for i, start in enumerate(starts)
            ]
            return supervise(groups, view, is_lockstep(plan), [written])
        finally:
            guard.close()


def make_plan(options: Options) -> Plan:
    """Work out the run that ``options`` ask for; write nothing.

    Raises:
        UserError: if something about ``options`` is wrong.
    """
    dialect = recognise(options.command)
    dialect.refuse_several_jobs()
    out = options.out.absolute()
    cpu = dialect.is_on("common.cpu")
    may_differ = changed.names("groups", options.allow_changed)
    who = record.identity(out, options.groups, may_differ)
    plan = Plan(
        dialect=dialect,
        groups=options.groups,
        devices=find_devices(
            os.environ, dialect.program, cpu, options.groups, options.workers_per_group
        ),
        out=out,
        run_id=who.run_id,
        nonces=who.nonces,
        flags=parse_group_flags(options.group_flags, options.groups),
        keep_omp="OMP_NUM_THREADS" in os.environ,
    )
    # Before anything is written or started.
    seeds(plan)
    check_exchanges(plan)
    return plan


def _pulse(plan: Plan, group: int, timeout: float) -> Pulse:
    exchange = exchange_folder(plan, group)
    alive = None if exchange is None else exchange / f"group-{group}" / "alive.json"
    return Pulse(timeout, alive, plan.run_id)


class _Start:
    """Gives the workers of one group, anew at each restart; the first time those on record.

    Attributes:
        resume: what they go on from.
    """

    def __init__(self, plan: Plan, group: int, ports: Ports, view: LiveView) -> None:
        self._plan = plan
        self._group = group
        self._ports = ports
        self._view = view
        self._notes: list[str] = []
        self.first = self._workers(0)

    def __call__(self, restarts: int) -> list[Worker]:
        workers = self._workers(restarts) if restarts else self.first
        # Not before it is started: a group that has finished goes on from nothing.
        for note in self._notes:
            self._view.announce(f"group {self._group}: {note}")
        self._notes = []
        return workers

    def _workers(self, restarts: int) -> list[Worker]:
        folder = self._plan.folder(self._group)
        self.resume = resume = checkpoints.prepare(folder)
        if resume.torn is not None:
            self._notes.append(f"{checkpoints.LAST} is torn, kept as {resume.torn.name}")
        if resume.problem is not None:
            self._notes.append(resume.problem)
        starts = starts_so_far(folder / "log.txt")
        if resume.checkpoint is not None:
            update = "an unknown update" if resume.update is None else f"update {resume.update}"
            self._notes.append(f"resumes at {update} from {resume.checkpoint}")
        elif starts:
            self._notes.append("starts over: no checkpoint yet")
        return workers_of(
            self._plan,
            self._group,
            self._ports.free(),
            resume,
            restarted=restarts > 0,
            starts=starts,
        )


def _with_program(dialect: Dialect) -> Dialect:
    """Make sure that the program can be started.

    An environment need not be activated for its tools to be used: the program may lie beside the
    interpreter that runs this.
    """
    name = dialect.program[0]
    if shutil.which(name) is not None:
        return dialect
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    if beside is None:
        raise UserError(f"{name} is not on PATH; install fairseq here or give its full path")
    return replace(dialect, program=(beside, *dialect.program[1:]))
