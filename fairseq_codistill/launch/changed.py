"""Whether a relaunch has the settings of the launch before it, which ``launch.json`` holds.

A group goes on from its checkpoint whatever the new command says, so a changed setting would turn
a run into another one without a word.  What decides how long the run is, what is logged, saved and
validated, and how the work is done, but not what it comes to, may change; everything else has to be
allowed by name.

Only what is written is compared: a flag that is left out differs from one that is given, even if
it is given its default.  A relative path means what it meant in the directory of its launch.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import checkpoints, spans
from fairseq_codistill.launch.commands import (
    BEGINNING,
    FAIRSEQ_DEFAULT_SEED,
    RESET,
    Plan,
    parse_group_flags,
)
from fairseq_codistill.launch.dialects import (
    Dialect,
    FairseqHydraTrain,
    Vision,
    recognise,
)
from fairseq_codistill.launch.settings import (
    HYDRA_FLAGS,
    POSITIONAL,
    bare_flags,
    command_line,
    content_of,
    digest_of,
    last_part,
    plain,
)
from fairseq_codistill.launch.values import (
    SHOWN,
    Move,
    differs,
    elsewhere,
    for_each_epoch,
    move,
    numbers,
    same,
)
from fairseq_codistill.records import printable

Files = Mapping[str, Mapping[str, str]]

# May change: these do not decide what is trained, or only how long.
FREE = frozenset(
    # Length.
    "max-update max-epoch epochs stop-time-hours stop-min-lr patience "
    # Logging.
    "log-interval log-format log-file no-progress-bar tensorboard-logdir wandb-project "
    "azureml-logging aim-repo aim-run-hash suppress-crashes profile "
    # Saving.
    "save-interval save-interval-updates keep-interval-updates keep-interval-updates-pattern "
    "keep-last-epochs keep-best-checkpoints no-save no-epoch-checkpoints no-last-checkpoints "
    "no-save-optimizer-state best-checkpoint-metric maximize-best-checkpoint-metric "
    "write-checkpoints-asynchronously codistill-keep "
    # Validation.
    "validate-interval validate-interval-updates validate-after-updates disable-validation "
    "valid-subset combine-valid-subsets ignore-unused-valid-subsets fixed-validation-seed "
    "max-tokens-valid batch-size-valid max-valid-steps eval-train-images eval-bleu eval-bleu-args "
    "skip-invalid-size-inputs-valid-test "
    "eval-bleu-detok eval-bleu-detok-args eval-tokenized-bleu eval-bleu-remove-bpe "
    "eval-bleu-print-samples "
    # Hangs, overflows, and a trial that trains nothing.
    "codistill-timeout heartbeat-timeout min-loss-scale dry-run "
    # How batches are read, memory is used, and workers talk to each other.
    "num-workers data-buffer-size dataset-impl use-plasma-view plasma-path cache-images "
    "check-images empty-cache-freq all-gather-list-size bucket-cap-mb ddp-backend "
    "distributed-backend distributed-num-procs nprocs-per-node find-unused-parameters "
    "gradient-as-bucket-view checkpoint-activations offload-activations "
    "load-checkpoint-on-all-dp-ranks debug-param-names reset-logging".split()
)
# Of these, what may change the order of a sum over workers, and so the last bits of the weights.
_LAST_BITS = frozenset({"ddp-backend", "distributed-backend", "bucket-cap-mb"})
_FREE_IN_MODEL = frozenset({"checkpoint-activations", "offload-activations"})
# Of hydra's sections, those in which a name above means the same.
_FREE_SECTIONS = (
    *("common", "checkpoint", "optimization", "dataset", "task", "criterion"),
    "distributed_training",
)
# Launch sets these itself, whatever the command says.
_SET_BY_LAUNCH = frozenset(
    "codistill-group codistill-num-groups codistill-run-id save-dir distributed-world-size "
    "distributed-rank distributed-init-method distributed-port distributed-no-spawn "
    "device-id".split()
)
# What a group that goes on from its checkpoint is not told.
_BEGINNING = frozenset(map(last_part, BEGINNING))
_RESET = frozenset(map(last_part, RESET))
_TOPOLOGY = "task.codistill_topology"
_UPDATE_FREQ = "optimization.update_freq"
_WORLD_SIZE = "distributed_training.distributed_world_size"
_SAVE_DIR = "checkpoint.save_dir"
# The groups' own flags, before and now, and whether the group goes on from its checkpoint.
_Key = tuple[tuple[str, ...], tuple[str, ...], bool]
_NAMES_A_FILE = frozenset({"config", *HYDRA_FLAGS.values()})
_WORKERS = "the number of workers of a group (--workers-per-group, or its GPUs)"


@dataclass(frozen=True)
class _Said:
    """What one launch was told.

    Attributes:
        dialect: its command.
        flags: of single groups.
        groups: their number.
        workers: of each group; None if it is not known.
        directory: what relative paths are relative to.
        files: what the configuration files said that the commands name.
        out: the run's directory; None if it is not known.
    """

    dialect: Dialect
    flags: Mapping[int, Sequence[str]]
    groups: int
    workers: int | None
    directory: str
    files: Files
    out: Path | None

    def of(self, group: int) -> Dialect:
        """Return the command line of one group."""
        own = self.flags.get(group, ())
        return replace(self.dialect, arguments=(*self.dialect.arguments, *own))


@dataclass(frozen=True)
class _Change:
    """One setting that differs.

    Attributes:
        name: what ``--allow-changed`` calls it.
        shown: as it is written on the command line.
        before: its value then; None if it was not given.
        now: its value now.
        free: whether it needs not be allowed.
    """

    name: str
    shown: str
    before: str | None
    now: str | None
    free: bool = False

    def __str__(self) -> str:
        return f"{self.shown} {differs(self.before, self.now)}"


@dataclass(frozen=True)
class Relaunch:
    """What a launch changes of the run that it goes on with.

    Attributes:
        allowed: what differs and is allowed, a clause for each.
        names: of the settings whose change makes other weights of the same updates, whether
            or not they had to be allowed.
        notes: sentences about what may change, and yet changes what is trained.
    """

    allowed: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def files_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Return what the configuration files say that the groups' commands name.

    A later launch compares it with what they say then.

    Returns:
        For each file, by its name in the command, its settings by their names.
    """
    said = _said_by(plan)
    return {name: dict(settings) for name, settings in said.files.items()}


def changes(plan: Plan, before: Mapping[str, Any] | None, allowed: Iterable[str]) -> Relaunch:
    """Compare the settings of ``plan`` with those of the launch before it.

    Args:
        plan: what is about to be launched.
        before: the record of the launch before, or None if there is none.
        allowed: the settings that may differ, as ``--allow-changed`` names them.

    Raises:
        UserError: if something differs that may not.
    """
    if before is None or "command" not in before:
        return Relaunch()
    now = _said_by(plan)
    trained = _has_trained(plan)
    try:
        said = _said_in(before, now)
    except UserError:
        if trained:
            raise
        return Relaunch()
    found, notes = _compare(said, now, plan)
    every = tuple(dict.fromkeys([*(one.name for _, one in found), *notes.values()]))
    if not trained:
        # Nothing is lost by a change.
        return Relaunch(names=every)
    found = [(groups, one) for groups, one in found if not one.free]
    refused = [(groups, one) for groups, one in found if not names(one.name, allowed)]
    if refused:
        distinct = dict.fromkeys(one.name for _, one in refused)
        options = " ".join(f"--allow-changed {printable(shlex.quote(n), SHOWN)}" for n in distinct)
        told = "; ".join(_tell(groups, one, plan.groups) for groups, one in refused)
        raise UserError(
            f"{options} is missing: the run in {plan.out} has had other settings so far: {told}. "
            "Give the settings that it had, choose another --out, or add that option to go on "
            "with the new ones"
        )
    clauses = tuple(_tell(groups, one, plan.groups) for groups, one in found)
    return Relaunch(clauses, every, tuple(notes))


def names(setting: str, allowed: Iterable[str]) -> bool:
    """Tell whether ``setting`` is among those that ``--allow-changed`` names.

    A key of hydra's goes by its last part, too.
    """
    spellings = {plain(setting), last_part(plain(setting))}
    return not spellings.isdisjoint(plain(name) for name in allowed)


def _has_trained(plan: Plan) -> bool:
    """Tell whether any group has something to go on from."""
    return any(
        next(plan.folder(group).glob(pattern), None) is not None
        for group in range(plan.groups)
        for pattern in ("checkpoint*.pt", "finished.json", "ended.json")
    )


def _said_by(plan: Plan) -> _Said:
    said = _Said(
        plan.dialect, plan.flags, plan.groups, plan.devices.workers, os.getcwd(), {}, plan.out
    )
    files = {}
    for group in {0, *plan.flags}:
        dialect = said.of(group)
        path = dialect.file()
        if path is not None and str(path) not in files:
            content = content_of(path, isinstance(dialect, FairseqHydraTrain))
            if content is not None:
                files[str(path)] = content
        topology = dialect.value(_TOPOLOGY)
        if topology is not None and os.path.isfile(topology):
            files[topology] = {_TOPOLOGY: digest_of(Path(topology))}
    return replace(said, files=files)


def _said_in(record: Mapping[str, Any], now: _Said) -> _Said:
    """Return what the launch was told that left a record.

    What a record of an earlier version does not tell is taken to be as it is ``now``.
    """
    groups = len(record["nonces"])
    options = record.get("options", [])
    own = [value for name, value in zip(options, options[1:], strict=False) if name == "--group"]
    try:
        dialect = recognise(record["command"])
        flags = parse_group_flags(own, groups) if "options" in record else now.flags
    except UserError as error:
        raise UserError(
            f"launch.json holds a command that this version cannot read ({error}); choose another "
            "--out"
        ) from None
    directory = record.get("directory", now.directory)
    workers = _workers_in(record, dialect)
    files = record.get("files", {})
    return _Said(dialect, flags, groups, workers, directory, files, _out_in(record, dialect))


def _out_in(record: Mapping[str, Any], dialect: Dialect) -> Path | None:
    """Return the run's directory, by the processes that launch started."""
    processes = record["groups"][0]
    named = dialect.read(processes[0]["argv"], _SAVE_DIR) if processes else None
    path = Path(named or "")
    return path.parent if path.is_absolute() and path.name == "group-0" else None


def _workers_in(record: Mapping[str, Any], dialect: Dialect) -> int | None:
    """Return the number of workers of a group, by the processes that launch started."""
    processes = record["groups"][0]
    if not processes:
        return None
    # fairseq starts the workers on GPUs by itself.
    size = dialect.read(processes[0]["argv"], _WORLD_SIZE) or ""
    return int(size) if re.fullmatch(r"[0-9]{1,9}", size) else len(processes)


def _compare(
    before: _Said, now: _Said, plan: Plan
) -> tuple[list[tuple[list[int], _Change]], dict[str, str]]:
    """Return what differs, and in which groups; and notes about the length, with its settings."""
    everywhere = list(range(now.groups))
    found: list[tuple[list[int], _Change]] = []
    if before.groups != now.groups:
        change = _Change("groups", "--groups", str(before.groups), str(now.groups))
        found.append((everywhere, change))
    if type(before.dialect) is not type(now.dialect):
        was, is_now = (" ".join(said.dialect.program) for said in (before, now))
        return [*found, (everywhere, _Change("program", "the program", was, is_now))], {}

    bare = bare_flags([one.of(group) for one in (before, now) for group in {0, *one.flags}])
    moved = None if before.out is None else move(str(before.out), str(plan.out))
    changed: dict[_Change, list[int]] = {}
    noted: dict[tuple[str, str], list[int]] = {}
    compared: dict[_Key, tuple[list[_Change], list[tuple[str, str]]]] = {}
    for group in range(min(before.groups, now.groups)):
        own = (tuple(before.flags.get(group, ())), tuple(now.flags.get(group, ())))
        old, new = _settings(before, now, group, bare)
        resumes = _begins(old, new) and checkpoints.find(plan.folder(group)).checkpoint is not None
        key = (*own, resumes)
        if key not in compared:
            if resumes:
                old, new = _going_on(old, new)
            differences = _differences(before, now, old, new, plan.out / "exchange", moved)
            compared[key] = list(differences), spans.notes(now.dialect, old, new)
        for change in compared[key][0]:
            changed.setdefault(change, []).append(group)
        for note in compared[key][1]:
            noted.setdefault(note, []).append(group)
    found += [(groups, change) for change, groups in changed.items()]
    notes = {_tell(groups, said, plan.groups): name for (name, said), groups in noted.items()}
    return found, notes


def _begins(*sides: Mapping[str, str]) -> bool:
    """Tell whether settings say where a run begins."""
    return any(last_part(name) in _BEGINNING | _RESET for side in sides for name in side)


def _going_on(
    old: Mapping[str, str], new: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings of a group that resumes, before and now, without those that do nothing.

    Launch does not tell it where a run begins, nor what belongs to that.  A reset of before has
    done its work.
    """
    told = []
    for side in (old, new):
        begins_elsewhere = any(last_part(name) in _BEGINNING for name in side)
        untold = _BEGINNING | _RESET if begins_elsewhere else _BEGINNING
        told.append({name: text for name, text in side.items() if last_part(name) not in untold})
    before, now = told
    done = {name for name in before if last_part(name) in _RESET and name not in now}
    return {name: text for name, text in before.items() if name not in done}, now


def _differences(
    before: _Said,
    now: _Said,
    old: Mapping[str, str],
    new: Mapping[str, str],
    exchange: Path,
    moved: Move | None,
) -> Iterator[_Change]:
    """Return what differs between the settings of one group before and now."""
    # Launch knows these defaults.
    for key, default in (
        ("common.seed", FAIRSEQ_DEFAULT_SEED),
        ("task.codistill_dir", exchange),
        (_UPDATE_FREQ, 1),
    ):
        name = _name_in(now.dialect, key)
        old, new = {name: str(default), **old}, {name: str(default), **new}
    update_freq = _name_in(now.dialect, _UPDATE_FREQ)
    if before.workers is not None and before.workers != now.workers:
        sizes = _passes(old[update_freq], before.workers), _passes(new[update_freq], now.workers)
        if None not in sizes and sizes[0] == sizes[1]:
            # Other devices for the same batches.
            new = {**new, update_freq: old[update_freq]}
            free = True
        else:
            free = False
        yield _Change("workers-per-group", _WORKERS, str(before.workers), str(now.workers), free)
    for name in sorted(old.keys() | new.keys()):
        free = _is_free(name)
        if free and last_part(name) not in _LAST_BITS:
            continue
        was, is_now = old.get(name), new.get(name)
        if not same(last_part(name), was, is_now, before.directory, now.directory, moved):
            if was is not None and was == is_now:
                was, is_now = elsewhere(was, before.directory), elsewhere(was, now.directory)
            yield _Change(name, _shown(now.dialect, name), was, is_now, free)


def _settings(
    before: _Said, now: _Said, group: int, bare: frozenset[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings of one group before and now, those of files that are known included."""
    dialects = [one.of(group) for one in (before, now)]
    said = [command_line(dialect, bare) for dialect in dialects]
    files = [
        {} if (path := dialect.file()) is None else one.files.get(str(path))
        for dialect, one in zip(dialects, (before, now), strict=True)
    ]
    first, second = files
    if first is not None and second is not None:
        said = [
            {name: value for name, value in {**file, **line}.items() if name not in _NAMES_A_FILE}
            for file, line in ((first, said[0]), (second, said[1]))
        ]
    # What a file says counts, not its name.
    topology = _name_in(now.dialect, _TOPOLOGY)
    lines = [
        one.files.get(settings.get(topology, ""), {}).get(_TOPOLOGY)
        for settings, one in zip(said, (before, now), strict=True)
    ]
    if None not in lines:
        said = [
            {**settings, topology: str(digest)}
            for settings, digest in zip(said, lines, strict=True)
        ]
    old, new = said
    return old, new


def _passes(update_freq: str, workers: int | None) -> list[Decimal] | None:
    """Return how many batches all workers together make one update of, for each epoch told."""
    told = numbers(update_freq)
    return (
        None
        if told is None or workers is None
        else for_each_epoch([number * workers for number in told])
    )


def _name_in(dialect: Dialect, key: str) -> str:
    return key if isinstance(dialect, FairseqHydraTrain) else last_part(key)


def _is_free(name: str) -> bool:
    section, dot, _ = name.rpartition(".")
    last = last_part(name)
    if re.match(r"hydra\b", name):
        return True
    if section == "model":
        return last in _FREE_IN_MODEL
    if dot and section not in _FREE_SECTIONS:
        return False
    return last in FREE or last in _SET_BY_LAUNCH


def _shown(dialect: Dialect, name: str) -> str:
    if isinstance(dialect, FairseqHydraTrain):
        return printable(name, SHOWN)
    if name == POSITIONAL and not isinstance(dialect, Vision):
        return "DATA"
    return printable(f"--{name}", SHOWN)


def _tell(groups: Sequence[int], change: _Change | str, of: int) -> str:
    if len(groups) == of:
        return str(change)
    which = "group" if len(groups) == 1 else "groups"
    return f"{change} ({which} {', '.join(map(str, groups))})"
