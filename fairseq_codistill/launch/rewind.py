"""Lockstep with other settings: the snapshots that groups will publish anew go first.

A group in lockstep that goes on from its checkpoint publishes again what it has published after it,
and stops if that is not the same: with another setting it never is.  Its peers would learn from the
old ones meanwhile.  So those from the checkpoint on are removed; the older ones are of the history
that the checkpoint has, and peers that resume from further back need them.

``fairseq_codistill.forget_snapshots`` does it, in a process of its own: launch does not load torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.checkpoints import Resume
from fairseq_codistill.launch.commands import Plan, exchange_address
from fairseq_codistill.launch.probe import ask
from fairseq_codistill.launch.settings import last_part
from fairseq_codistill.launch.values import numbers
from fairseq_codistill.records import printable
from fairseq_codistill.records.address import is_uri

PROGRAM = "fairseq_codistill.forget_snapshots"
# An object store may need some seconds for each snapshot.
_SECONDS = 900.0
_INTERVAL = "task.codistill_interval"
DEFAULT_INTERVAL = 2500
_LONGEST = 1000


def rewind(plan: Plan, starting: Mapping[int, Resume], changed: Iterable[str]) -> list[str]:
    """Remove the snapshots that groups in lockstep will publish anew, with other weights.

    Args:
        plan: the run; none of its groups runs.
        starting: the groups that are about to be started, and what each goes on from.
        changed: the names of the settings that are others now.

    Returns:
        What to tell the user.

    Raises:
        UserError: if they cannot be removed, or the groups could not go on without them.
    """
    names = list(changed)
    option = f"the setting {printable(names[0], _LONGEST)} is another than before"
    kept = {group: _updates_kept(plan, group, resume, option) for group, resume in starting.items()}
    if any(last_part(name) in ("codistill-interval", "codistill-mode") for name in names):
        _check_interval(plan, kept, option)
    told = []
    for address, groups in _by_exchange(plan, kept).items():
        asked = [f"{group}:{kept[group]}" for group in groups]
        argv = [sys.executable, "-m", PROGRAM, address, plan.run_id, *asked]
        answer = ask(argv, os.environ, _SECONDS)
        removed = None if answer.trouble else _removed(answer.out)
        if removed is None:
            by_hand = "; ".join(
                f"those of {address}/group-{group} whose number is {kept[group]} or higher"
                for group in groups
            )
            reason = printable(answer.trouble or "it gave no answer", _LONGEST)
            raise UserError(
                f"{option}: in lockstep, groups then publish other snapshots than before, so the "
                "old ones from their checkpoints on have to go, and "
                f"could not be removed ({reason}); mend that, or remove the files NUMBER.json and "
                f"NUMBER.safetensors of this run by hand: {by_hand}"
            )
        told += [
            f"group {group}: removed {count} snapshot(s) from update {kept[group]} on from "
            f"{address}, to be published anew with the new settings"
            for group, count in removed.items()
            if count
        ]
    return told


def _updates_kept(plan: Plan, group: int, resume: Resume, option: str) -> int:
    """Return the update from which on a group publishes anew."""
    if resume.checkpoint is None:
        return 0
    if resume.update is None:
        raise UserError(
            f"{option}: in lockstep launch must know from which update each group goes on, and "
            f"{resume.checkpoint} of group {group} does not tell; choose another --out, or put a "
            "checkpoint in its place that does"
        )
    return resume.update


def _check_interval(plan: Plan, kept: Mapping[int, int], option: str) -> None:
    """Make sure that groups find at once the snapshots that the new interval, or mode, asks for.

    Raises:
        UserError: if they would wait for some that nobody publishes any more.
    """
    for group, update in kept.items():
        told = numbers(plan.command(group).value(_INTERVAL) or str(DEFAULT_INTERVAL))
        interval = int(told[0]) if told else 0
        if interval < 1 or (update % interval == 0 and len(set(kept.values())) == 1):
            continue
        due = update - update % interval
        raise UserError(
            f"{option}: in lockstep, group {group} would go on from update {update} and wait for "
            f"the snapshots of update {due}, which with the settings of before may never have been "
            "published; let all groups go on from checkpoints of one update that is a multiple of "
            f"{interval} (remove later ones), or choose another --out"
        )


def _by_exchange(plan: Plan, groups: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for group in groups:
        address = exchange_address(plan, group)
        # A directory that is not there holds nothing.
        if address is not None and (is_uri(address) or os.path.isdir(address)):
            found.setdefault(address, []).append(group)
    return found


def _removed(said: str) -> dict[int, int] | None:
    """Return how many snapshots of each group were removed, as the program says it."""
    try:
        (line,) = said.splitlines()[-1:]
        return {int(group): int(count) for group, count in json.loads(line).items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
