"""Reads what the groups of an exchange say of themselves, and which snapshots they have there.

A group has one ``alive.json``, which is the last run's; snapshots of earlier runs may lie beside
those of the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fairseq_codistill.errors import UserError
from fairseq_codistill.exchange import (
    Alive,
    Exchange,
    ExchangeError,
    Manifest,
    Store,
    read_alive,
)
from fairseq_codistill.exchange.exchange import group_folder
from fairseq_codistill.exchange.manifest import MAX_MANIFEST_BYTES
from fairseq_codistill.status.places import Place

RUNNING = "running"
FINISHED = "finished"
STOPPED = "stopped"
SILENT = "silent"
PAST = "past"
ABSENT = "absent"

# Of each group; older ones change nothing about where it is.
MANIFESTS_READ = 32

_GROUP = re.compile(r"group-(\d{1,6})")


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
            ``silent``: it was running, and has given no sign of life for a minute; ``past``: only
            snapshots of this run are left; ``absent``: launched, and nothing came from it yet.
        silence: seconds since its last sign of life, or None if there is none.
        update: updates made.
        epoch: the one it is in.
        seed: of its randomness.
        restarts: by ``codistill launch``.
        peers: the peers in use -> the update of their snapshot.
        snapshot: its newest one.
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


@dataclass
class _Seen:
    """The files of one group."""

    group: int
    alive: Alive | None
    manifests: list[Manifest]
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
            self._store = Store(place.exchange)
        except ExchangeError as error:
            raise UserError(
                f"{place.exchange} cannot be opened ({error.__cause__ or error}); name a folder or "
                "a URI whose fsspec package is installed"
            ) from error
        # An exchange has no files but those of runs; listing them needs no run's name.
        self._exchange = Exchange(self._store, "")
        self._known: dict[int, tuple[str | None, dict[int, Manifest]]] = {}

    def look(self) -> Report:
        """Read everything once.

        Raises:
            UserError: if the exchange cannot be listed, or nothing is in it.
        """
        now = time.time()
        launched = self._place.launched
        groups = self._groups()
        if not groups and launched is None:
            raise UserError(
                f"there is nothing in {self._place.exchange} yet, or no such place: a group shows "
                "itself as soon as it starts to train"
            )
        with ThreadPoolExecutor(max_workers=8) as pool:
            seen = list(pool.map(self._read, groups))
        runs = _runs(seen, now)
        if launched is not None:
            runs = _with_absent(runs, launched.run_id, launched.groups)
        problems = [problem for one in seen for problem in one.problems]
        return Report(self._place, now, tuple(runs), tuple(problems))

    def _groups(self) -> list[int]:
        try:
            names = self._store.names("")
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            raise UserError(
                f"{self._place.exchange} cannot be listed ({_say(error)}); see to the "
                "address, the permissions and the network"
            ) from error
        matches = map(_GROUP.fullmatch, names)
        return sorted(int(match[1]) for match in matches if match)

    def _read(self, group: int) -> _Seen:
        seen = _Seen(group, None, [], [])
        try:
            seen.alive = self._alive(group, seen.problems)
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            seen.problems.append(f"group {group}: its alive.json cannot be read ({_say(error)})")
        run_id = seen.alive.run_id if seen.alive is not None else None
        # A snapshot never changes, unless another run puts its own in its place.
        before, known = self._known.get(group, (None, {}))
        known = known if before == run_id else {}
        try:
            for update in self._exchange.updates(group)[:MANIFESTS_READ]:
                try:
                    seen.manifests.append(known.get(update) or self._manifest(group, update))
                except FileNotFoundError:
                    continue  # Pruned since it was listed.
                except ExchangeError as error:
                    seen.problems.append(f"group {group}: snapshot of update {update}: {error}")
        except Exception as error:  # noqa: BLE001 - as above
            seen.problems.append(f"group {group}: its snapshots cannot be read ({_say(error)})")
        self._known[group] = (run_id, {manifest.update: manifest for manifest in seen.manifests})
        return seen

    def _alive(self, group: int, problems: list[str]) -> Alive | None:
        alive = read_alive(self._store, group)
        if alive is not None:
            return alive
        if "alive.json" in self._store.names(group_folder(group)):
            problems.append(f"group {group}: its alive.json cannot be read, or is malformed")
        return None

    def _manifest(self, group: int, update: int) -> Manifest:
        name = f"{group_folder(group)}/{update:010d}.json"
        return Manifest.from_json(self._store.read(name, MAX_MANIFEST_BYTES))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _runs(seen: Sequence[_Seen], now: float) -> list[Run]:
    names = {manifest.run_id for one in seen for manifest in one.manifests}
    names |= {one.alive.run_id for one in seen if one.alive is not None}
    runs = []
    for name in names:
        members, times = [], []
        for one in seen:
            own = [manifest for manifest in one.manifests if manifest.run_id == name]
            alive = one.alive if one.alive is not None and one.alive.run_id == name else None
            times += [manifest.time for manifest in own] + ([alive.time] if alive else [])
            if own or alive:
                members.append(_member(one.group, alive, own, now))
        runs.append(Run(name, max(times), tuple(members)))
    return sorted(runs, key=lambda run: run.time, reverse=True)


def _member(group: int, alive: Alive | None, manifests: list[Manifest], now: float) -> Member:
    newest = max(manifests, key=lambda manifest: manifest.update, default=None)
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
        state = RUNNING if alive.fresh else SILENT
    return Member(
        group,
        state,
        silence=max(0.0, now - alive.time),
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
    absent = [Member(group, ABSENT) for group in range(groups) if group not in there]
    members = sorted([*run.members, *absent], key=lambda member: member.group)
    return [replace(run, members=tuple(members)), *(r for r in runs if r.run_id != run_id)]
