"""Reads what the groups of an exchange say of themselves, and which snapshots they have there.

A group has one ``alive.json``, which is the last run's; snapshots of earlier runs may lie beside
those of the last.

The time in a heartbeat may be that of another clock, so it does not tell whether a group lives.
A heartbeat is watched for some seconds, and changes if the group runs.  One that a process of this
host has written tells its age, and is not watched if it is new.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.exchange import Alive, ExchangeError, Manifest, SnapshotRejected
from fairseq_codistill.exchange.exchange import group_folder
from fairseq_codistill.exchange.manifest import MAX_MANIFEST_BYTES
from fairseq_codistill.records import Ended, parse_alive, printable, read_ended
from fairseq_codistill.records.heartbeat import NAME as ALIVE
from fairseq_codistill.records.heartbeat import clock_of_this_host
from fairseq_codistill.status.limits import BoundedStore, in_parallel
from fairseq_codistill.status.places import GROUP, MANIFEST, Place

RUNNING = "running"
FINISHED = "finished"
STOPPED = "stopped"
SILENT = "silent"
PAST = "past"
ABSENT = "absent"

# How long a heartbeat is watched; a group writes one every 5 s.
WATCH_SECONDS = 12.0
# How old one may be by its own clock, and how long one that was seen to change may stay as it is.
SILENT_SECONDS = 60.0
# By how much the clocks of two hosts may differ that are kept right.
_USUAL_DIFFERENCE = 5.0
LOOK_EVERY = 1.0

# Of each group; older ones change nothing about where it is.
MANIFESTS_READ = 32

# Of an exchange that anybody can fill, no more than this is read and told.
MOST_GROUPS = 1024
MOST_RUNS = 100
MOST_PROBLEMS = 100


@dataclass(frozen=True)
class Newest:
    """The newest snapshot that a group has in the exchange.

    Attributes:
        age: seconds since it was published.
    """

    update: int
    epoch: int
    bytes: int
    dtype: str
    age: float


@dataclass(frozen=True)
class Member:
    """One group in one run.

    Attributes:
        group: its index.
        state: ``running``; ``finished``: it has made its last update; ``stopped``: it ended before;
            ``silent``: it says that it runs, and its heartbeat does not change any more; ``past``:
            only snapshots of this run are left; ``absent``: launched, and nothing came from it yet.
        silence: age of its heartbeat by this clock, in seconds; None if there is no heartbeat, or
            it comes from the future, as another clock may tell it.
        update: updates made.
        epoch: the one it is in.
        seed: of its randomness.
        restarts: by ``codistill launch``.
        peers: the peers in use -> the update of their snapshot.
        snapshot: its newest one.
        ended: the evidence of its end in the OUT of a launch, or None.
    """

    group: int
    state: str
    silence: float | None = None
    update: int | None = None
    epoch: int | None = None
    seed: int | None = None
    restarts: int | None = None
    peers: tuple[tuple[int, int], ...] = ()
    snapshot: Newest | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        run_id: its name.
        time: when something of it was last heard, seconds since the epoch of Unix; 0 for never.
        members: its groups.
    """

    run_id: str
    time: float
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Report:
    """What was seen.

    Attributes:
        place: where.
        time: when, seconds since the epoch of Unix.
        runs: the one heard of last first.
        problems: sentences about what could not be read.
    """

    place: Place
    time: float
    runs: tuple[Run, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Snapshot:
    """What a manifest tells that is shown."""

    run_id: str
    update: int
    epoch: int
    bytes: int
    dtype: str
    time: float


@dataclass(frozen=True)
class _Heard:
    """A group's heartbeat.

    Attributes:
        alive: what it says.
        since: when it was first seen as it is, by this process's clock.
        changed: whether another one was seen before.
    """

    alive: Alive
    since: float
    changed: bool


@dataclass
class _Seen:
    """The files of one group."""

    group: int
    alive: Alive | None
    snapshots: list[_Snapshot]
    problems: list[str]


class Survey:
    """Looks at one exchange, as often as wanted.

    Args:
        place: where it is.

    Raises:
        UserError: if it cannot be opened.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        try:
            self._store = BoundedStore(place.exchange)
        except Exception as error:  # stores raise what they like
            reason = error.__cause__ or error if isinstance(error, ExchangeError) else _say(error)
            raise UserError(
                f"{place.exchange} cannot be opened ({reason}); name a directory or a URI whose "
                "fsspec package is installed"
            ) from error
        self._known: dict[int, tuple[str | None, dict[int, _Snapshot]]] = {}
        self._heard: dict[int, _Heard] = {}

    def look(self) -> Report:
        """Read everything once, and watch heartbeats for some seconds where that is needed.

        Raises:
            UserError: if the exchange cannot be listed, or nothing is in it.
        """
        self._store.begin_look()
        launched = self._place.launched
        groups = self._groups()
        if not groups and launched is None:
            raise UserError(
                f"there is nothing in {self._place.exchange} yet, or no such place: a group shows "
                "itself as soon as it starts to train"
            )
        problems = list(self._place.notes)
        if len(groups) > MOST_GROUPS:
            problems.append(f"{len(groups) - MOST_GROUPS} more groups are there and are not read")
        seen = in_parallel(self._read, groups[:MOST_GROUPS])
        self._watch([one for one in seen if self._is_doubtful(one.group)])
        silent = {one.group for one in seen if self._is_silent(one.group)}
        now = time.time()
        runs = _runs(seen, now, silent)
        if launched is not None:
            runs = _with_absent(runs, launched.run_id, launched.groups)
            runs[0] = _with_ends(runs[0], launched.out, problems)
        if len(runs) > MOST_RUNS:
            problems.append(f"{len(runs) - MOST_RUNS} earlier runs are there and are not shown")
        # Each once: a heartbeat may have been read several times.
        problems += dict.fromkeys(problem for one in seen for problem in one.problems)
        if len(problems) > MOST_PROBLEMS:
            more = f"and {len(problems) - MOST_PROBLEMS} more problems like these"
            problems = [*problems[:MOST_PROBLEMS], more]
        return Report(self._place, now, tuple(runs[:MOST_RUNS]), tuple(map(printable, problems)))

    def _groups(self) -> list[int]:
        try:
            names = self._store.names("")
        except Exception as error:  # stores raise what they like
            raise UserError(
                f"{self._place.exchange} cannot be listed ({_say(error)}); see to the "
                "address, the permissions and the network"
            ) from error
        matches = map(GROUP.fullmatch, names)
        return sorted(int(match[1]) for match in matches if match)

    def _read(self, group: int) -> _Seen:
        seen = _Seen(group, None, [], [])
        try:
            names = self._store.names(group_folder(group))
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            seen.problems.append(f"group {group}: its files cannot be listed ({_say(error)})")
            return seen
        if ALIVE in names:
            self._read_alive(seen)
        self._read_snapshots(seen, names)
        return seen

    def _read_alive(self, seen: _Seen) -> None:
        try:
            data = self._store.read(f"{group_folder(seen.group)}/{ALIVE}", MAX_MANIFEST_BYTES)
            alive = parse_alive(data)
        except FileNotFoundError:
            return  # Gone since it was listed.
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            reason = error if isinstance(error, (ValueError, ExchangeError)) else _say(error)
            seen.problems.append(f"group {seen.group}: its alive.json cannot be read ({reason})")
            return
        peers = dict(islice(alive.peers.items(), MOST_GROUPS))
        seen.alive = dataclasses.replace(alive, peers=peers)
        heard = self._heard.get(seen.group)
        if heard is None or heard.alive != seen.alive:
            self._heard[seen.group] = _Heard(seen.alive, time.monotonic(), heard is not None)

    def _watch(self, doubtful: list[_Seen]) -> None:
        """Read heartbeats again until they change, or have been watched long enough."""
        while doubtful:
            time.sleep(LOOK_EVERY)
            in_parallel(self._read_alive, doubtful)
            doubtful = [one for one in doubtful if self._is_doubtful(one.group)]

    def _is_doubtful(self, group: int) -> bool:
        """Tell whether it is still to be found out if a group runs."""
        heard = self._heard.get(group)
        return (
            heard is not None
            and heard.alive.running
            and not heard.changed
            and not _is_new(heard.alive)
            and time.monotonic() - heard.since < WATCH_SECONDS
        )

    def _is_silent(self, group: int) -> bool:
        """Tell whether a group does not run any more although it says so."""
        heard = self._heard.get(group)
        if heard is None or not heard.alive.running:
            return False
        believed = heard.changed or _is_new(heard.alive)
        patience = SILENT_SECONDS if believed else WATCH_SECONDS
        return time.monotonic() - heard.since >= patience

    def _read_snapshots(self, seen: _Seen, names: list[str]) -> None:
        group = seen.group
        run_id = seen.alive.run_id if seen.alive is not None else None
        # A snapshot never changes, unless another run puts its own in its place.
        before, known = self._known.get(group, (None, {}))
        known = known if before == run_id else {}
        updates = sorted(int(match[1]) for match in map(MANIFEST.fullmatch, names) if match)
        for update in updates[: -MANIFESTS_READ - 1 : -1]:
            try:
                seen.snapshots.append(known.get(update) or self._snapshot(group, update))
            except FileNotFoundError:
                continue  # Pruned since it was listed.
            except ExchangeError as error:
                seen.problems.append(f"group {group}: snapshot of update {update}: {error}")
            except Exception as error:  # noqa: BLE001 - as above
                said = f"group {group}: its snapshots cannot be read ({_say(error)})"
                seen.problems.append(said)
                break
        self._known[group] = (run_id, {snapshot.update: snapshot for snapshot in seen.snapshots})

    def _snapshot(self, group: int, update: int) -> _Snapshot:
        name = f"{group_folder(group)}/{update:010d}.json"
        manifest = Manifest.from_json(self._store.read(name, MAX_MANIFEST_BYTES))
        if (manifest.group, manifest.update) != (group, update):
            raise SnapshotRejected(
                f"its manifest is that of group {manifest.group}, update {manifest.update}"
            )
        # Not all of it: a model's configuration may be large.
        return _Snapshot(
            manifest.run_id,
            manifest.update,
            manifest.epoch,
            manifest.bytes,
            manifest.dtype,
            manifest.time,
        )


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _is_new(alive: Alive) -> bool:
    """Tell whether a heartbeat was just written, as far as this host's clock can tell."""
    ours = alive.clock is not None and alive.clock == clock_of_this_host()
    return ours and abs(time.time() - alive.time) < SILENT_SECONDS


def _runs(seen: Sequence[_Seen], now: float, silent: set[int]) -> list[Run]:
    members: dict[str, list[Member]] = {}
    times: dict[str, float] = {}
    for one in seen:
        own: dict[str, list[_Snapshot]] = {}
        if one.alive is not None:
            own[one.alive.run_id] = []
        for snapshot in one.snapshots:
            own.setdefault(snapshot.run_id, []).append(snapshot)
        for name, snapshots in own.items():
            alive = one.alive if one.alive is not None and one.alive.run_id == name else None
            heard = [snapshot.time for snapshot in snapshots] + ([alive.time] if alive else [])
            times[name] = max(times.get(name, 0.0), *heard)
            member = _member(one.group, alive, snapshots, now, one.group in silent)
            members.setdefault(name, []).append(member)
    runs = [Run(name, times[name], tuple(members[name])) for name in members]
    return sorted(runs, key=lambda run: run.time, reverse=True)


def _member(
    group: int, alive: Alive | None, snapshots: list[_Snapshot], now: float, silent: bool
) -> Member:
    newest = max(snapshots, key=lambda one: one.update, default=None)
    snapshot = None
    if newest is not None:
        age = max(0.0, now - newest.time)
        snapshot = Newest(newest.update, newest.epoch, newest.bytes, newest.dtype, age)
    if alive is None:
        return Member(group, PAST, snapshot=snapshot)
    if alive.finished:
        state = FINISHED
    elif not alive.running:
        state = STOPPED
    else:
        state = SILENT if silent else RUNNING
    return Member(
        group,
        state,
        silence=None if alive.time > now + _USUAL_DIFFERENCE else max(0.0, now - alive.time),
        update=alive.update,
        epoch=alive.epoch,
        seed=alive.seed,
        restarts=alive.restarts,
        peers=tuple(sorted((int(peer), update) for peer, update in alive.peers.items())),
        snapshot=snapshot,
    )


def _with_absent(runs: list[Run], run_id: str, groups: int) -> list[Run]:
    """Show the groups of a launch that have not come forward, and its run before others."""
    run = next((run for run in runs if run.run_id == run_id), Run(run_id, 0.0, ()))
    there = {member.group for member in run.members}
    absent = [
        Member(group, ABSENT) for group in range(min(groups, MOST_GROUPS)) if group not in there
    ]
    members = sorted([*run.members, *absent], key=lambda member: member.group)
    return [replace(run, members=tuple(members)), *(r for r in runs if r.run_id != run_id)]


def _with_ends(run: Run, out: Path, problems: list[str]) -> Run:
    """Add the evidence of the groups' ends, which their leaders have left in a launch's OUT."""
    members = []
    for member in run.members:
        ended = None
        try:
            ended = read_ended(out / f"group-{member.group}")
        except (OSError, ValueError) as error:
            problems.append(f"group {member.group}: {error}")
        ours = ended is not None and ended.run_id == run.run_id
        members.append(replace(member, ended=ended if ours else None))
    return replace(run, members=tuple(members))
