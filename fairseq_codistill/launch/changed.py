"""Whether a relaunch has the settings of the launch before it, which ``launch.json`` holds.

A group goes on from its checkpoint whatever the new command says, so a changed setting would turn
a run into another one without a word.  What decides how long the run is, and what is logged, saved
and validated, may change; everything else has to be allowed by name.

Only what is written is compared: a flag that is left out differs from one that is given, even if
it is given its default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.commands import (
    FAIRSEQ_DEFAULT_SEED,
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
    LONGEST_VALUE,
    OFF,
    ON,
    POSITIONAL,
    bare_flags,
    command_line,
    content_of,
    digest_of,
    last_part,
    plain,
)
from fairseq_codistill.records import printable
from fairseq_codistill.records.address import resolved

Files = Mapping[str, Mapping[str, str]]

# May change: these do not decide what is trained, or only how long.
FREE = frozenset(
    # Length.
    "max-update max-epoch stop-time-hours stop-min-lr patience "
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
    "eval-bleu-detok eval-bleu-detok-args eval-tokenized-bleu eval-bleu-remove-bpe "
    "eval-bleu-print-samples "
    # Hangs, and a trial that trains nothing.
    "codistill-timeout heartbeat-timeout dry-run".split()
)
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
# Settings that may name files, several of them with a colon between.
_PATHS = frozenset(
    "data user-dir config config-dir config-path restore-file finetune-from-model codistill-dir "
    "codistill-teachers codistill-topology".split()
)
_TOPOLOGY = "task.codistill_topology"
_NAMES_A_FILE = frozenset({"config", *HYDRA_FLAGS.values()})
_SHOWN = 80


@dataclass(frozen=True)
class _Said:
    """What one launch was told.

    Attributes:
        dialect: its command.
        flags: of single groups.
        groups: their number.
        workers: of each group; None if that is not known.
        directory: what relative paths are relative to.
        files: what the configuration files said that the commands name.
    """

    dialect: Dialect
    flags: Mapping[int, Sequence[str]]
    groups: int
    workers: int | None
    directory: str
    files: Files

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
    """

    name: str
    shown: str
    before: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.shown} {_was(self.before)} and {_is(self.now)} now"


def files_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Return what the configuration files say that the groups' commands name.

    A later launch compares it with what they say then.

    Returns:
        For each file, by its name in the command, its settings by their names.
    """
    said = _said_by(plan)
    return {name: dict(settings) for name, settings in said.files.items()}


def changes(plan: Plan, before: Mapping[str, Any] | None, allowed: Iterable[str]) -> list[str]:
    """Compare the settings of ``plan`` with those of the launch before it.

    Args:
        plan: what is about to be launched.
        before: the record of the launch before, or None if there is none.
        allowed: the settings that may differ, as ``--allow-changed`` names them.

    Returns:
        What differs and is allowed, a clause for each.

    Raises:
        UserError: if something differs that may not.
    """
    if before is None or "command" not in before or not _has_trained(plan):
        return []
    found = _compare(_said_in(before), _said_by(plan), plan)
    refused = [(groups, one) for groups, one in found if not names(one.name, allowed)]
    if refused:
        distinct = dict.fromkeys(one.name for _, one in refused)
        options = " ".join(f"--allow-changed {name}" for name in distinct)
        told = "; ".join(_tell(groups, one, plan.groups) for groups, one in refused)
        raise UserError(
            f"{options} is missing: the run in {plan.out} was launched with other settings, and "
            f"would go on with these: {told}. Give the settings it had, choose another --out, or "
            "add that option to go on with the new ones"
        )
    return [_tell(groups, one, plan.groups) for groups, one in found]


def names(setting: str, allowed: Iterable[str]) -> bool:
    """Tell whether ``setting`` is among those that ``--allow-changed`` names."""
    return plain(setting) in {plain(name) for name in allowed}


def _has_trained(plan: Plan) -> bool:
    """Tell whether any group has something to go on from; else nothing is lost by a change."""
    return any(
        next(plan.folder(group).glob(pattern), None) is not None
        for group in range(plan.groups)
        for pattern in ("checkpoint*.pt", "finished.json", "ended.json")
    )


def _said_by(plan: Plan) -> _Said:
    said = _Said(plan.dialect, plan.flags, plan.groups, plan.devices.workers, os.getcwd(), files={})
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


def _said_in(record: Mapping[str, Any]) -> _Said:
    groups = len(record["nonces"])
    options = record.get("options", [])
    workers = record.get("workers")
    own = []
    for name, value in zip(options, options[1:], strict=False):
        if name == "--group":
            own.append(value)
        elif name == "--workers-per-group" and workers is None and value.isdecimal():
            workers = int(value)
    try:
        dialect = recognise(record["command"])
        flags = parse_group_flags(own, groups)
    except UserError as error:
        raise UserError(
            f"launch.json holds a command that this version cannot read ({error}); choose another "
            "--out"
        ) from None
    directory = record.get("directory", os.getcwd())
    return _Said(dialect, flags, groups, workers, directory, record.get("files", {}))


def _compare(before: _Said, now: _Said, plan: Plan) -> list[tuple[list[int], _Change]]:
    """Return what differs, and in which groups."""
    everywhere = list(range(now.groups))
    found: list[tuple[list[int], _Change]] = []
    if before.groups != now.groups:
        change = _Change("groups", "--groups", str(before.groups), str(now.groups))
        found.append((everywhere, change))
    if before.workers is not None and before.workers != now.workers:
        shown = "the number of workers of a group (--workers-per-group)"
        change = _Change("workers-per-group", shown, str(before.workers), str(now.workers))
        found.append((everywhere, change))
    if type(before.dialect) is not type(now.dialect):
        programs = (" ".join(said.dialect.program) for said in (before, now))
        return [*found, (everywhere, _Change("program", "the program", *programs))]

    bare = bare_flags([one.of(group) for one in (before, now) for group in {0, *one.flags}])
    groups_of: dict[_Change, list[int]] = {}
    compared: dict[tuple[tuple[str, ...], tuple[str, ...]], list[_Change]] = {}
    for group in range(min(before.groups, now.groups)):
        key = (tuple(before.flags.get(group, ())), tuple(now.flags.get(group, ())))
        if key not in compared:
            compared[key] = list(_differences(before, now, group, bare, plan.out / "exchange"))
        for change in compared[key]:
            groups_of.setdefault(change, []).append(group)
    return [*found, *((groups, change) for change, groups in groups_of.items())]


def _differences(
    before: _Said, now: _Said, group: int, bare: frozenset[str], exchange: Path
) -> Iterator[_Change]:
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
    # Launch knows these defaults.
    for key, default in (("common.seed", FAIRSEQ_DEFAULT_SEED), ("task.codistill_dir", exchange)):
        name = _name_in(now.dialect, key)
        if any(name in settings for settings in said):
            said = [{name: str(default), **settings} for settings in said]
    old, new = said
    for name in sorted(old.keys() | new.keys()):
        if _is_free(name):
            continue
        values = (old.get(name), new.get(name))
        if not _same(name, *values, before.directory, now.directory):
            yield _Change(name, _shown(now.dialect, name), *values)


def _name_in(dialect: Dialect, key: str) -> str:
    return key if isinstance(dialect, FairseqHydraTrain) else last_part(key)


def _is_free(name: str) -> bool:
    section, dot, _ = name.rpartition(".")
    last = last_part(name)
    if re.match(r"hydra\b", name):
        return True
    if dot and section not in _FREE_SECTIONS:
        return False
    return last in FREE or last in _SET_BY_LAUNCH


def _same(name: str, old: str | None, new: str | None, old_from: str, new_from: str) -> bool:
    """Tell whether two values mean the same."""
    if old is None or new is None:
        return old is new
    if old == new:
        if last_part(name) not in _PATHS or old_from == new_from:
            return True
        # A relative path means another file elsewhere; what is no file is a word.
        places = [_places(value, where) for value, where in ((old, old_from), (new, new_from))]
        there = any(os.path.lexists(place) for both in places for place in both)
        return not there or places[0] == places[1]
    if {old.lower(), new.lower()} in ({ON}, {OFF}):
        return True
    numbers = _numbers(old)
    if numbers is not None and numbers == _numbers(new):
        return True
    return _places(old, old_from) == _places(new, new_from)


def _places(value: str, directory: str) -> list[str]:
    """Return the places that a value names, if it names any: paths without links, or a URI."""
    if "\0" in value:
        return [value]
    if "://" in value:
        place = resolved(value, directory)
        return [place if "://" in place else os.path.realpath(place)]
    return [os.path.realpath(resolved(part, directory)) for part in value.split(":")]


def _numbers(value: str) -> list[Decimal] | None:
    """Return the numbers of ``0.1``, ``[1,2]`` or ``(0.9, 0.98)``, or None if it is another."""
    if len(value) > LONGEST_VALUE:
        return None
    try:
        numbers = [Decimal(part.strip()) for part in value.strip("()[] ").split(",") if part]
    except InvalidOperation:
        return None
    return numbers if numbers and all(number.is_finite() for number in numbers) else None


def _shown(dialect: Dialect, name: str) -> str:
    if isinstance(dialect, FairseqHydraTrain):
        return name
    if name == POSITIONAL and not isinstance(dialect, Vision):
        return "DATA"
    return f"--{name}"


def _was(value: str | None) -> str:
    return "was not given" if value is None else f"was {printable(value, _SHOWN)}"


def _is(value: str | None) -> str:
    return "is not given" if value is None else f"is {printable(value, _SHOWN)}"


def _tell(groups: Sequence[int], change: _Change, of: int) -> str:
    if len(groups) == of:
        return str(change)
    which = "group" if len(groups) == 1 else "groups"
    return f"{change} ({which} {', '.join(map(str, groups))})"
