"""How often a run's models give an image the same class, as ``vision.diagnostics`` has found it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fairseq_codistill.records import is_whole, parse_object, read_file
from fairseq_codistill.records.training_log import MOST_UPDATES

FILE = "agreement.jsonl"
# A line compares two checkpoints and has less than a kilobyte.
LARGEST = 16 * 1024 * 1024


@dataclass(frozen=True)
class Agreement:
    """Agreement of one run's groups: a mean over their pairs, at one update after the other.

    Attributes:
        updates: of the checkpoints, growing; None first, if a line does not tell.
        shares: of the images that two models give the same class.
    """

    updates: list[int | None]
    shares: list[float]

    @property
    def churn(self) -> list[float]:
        """The rest of the images: prediction churn."""
        return [1 - share for share in self.shares]

    @property
    def known(self) -> list[tuple[int, float]]:
        """Updates and shares where the update is known."""
        pairs = zip(self.updates, self.shares, strict=True)
        return [(update, share) for update, share in pairs if update is not None]


def read(out: Path) -> tuple[Agreement | None, str | None]:
    """Read the agreement of the run at ``out``.

    Returns:
        The agreement, or None if there is none; and a sentence on what is wrong with it, or None.
    """
    path = out / FILE
    try:
        found = _parse(read_file(path, LARGEST))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{path} is not what vision.diagnostics writes, and is left out ({error!r})."
    if found is None:
        return None, f"{path} compares no two groups at one update, and is left out."
    return found, None


def _parse(data: bytes) -> Agreement | None:
    found: dict[int | None, dict[frozenset[str], float]] = {}
    for line in data.splitlines():
        if line.startswith(b"["):
            continue
        said = parse_object(line)
        if "agreement" not in said:
            continue  # What it says of one model by itself.
        # Older lines tell neither groups nor updates; the folders are those of the groups then.
        groups = said.get("groups") or [Path(path).parent.name for path in said["checkpoints"]]
        pair, updates = frozenset(map(str, groups)), set(said.get("updates", [None]))
        # Two checkpoints of one group, or of different updates, tell something else.
        if len(pair) != 2 or len(updates) != 1:
            continue
        update, share = updates.pop(), said["agreement"]
        if update is not None and not is_whole(update, 0, MOST_UPDATES):
            raise ValueError(f"{update} is no number of updates")
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise ValueError(f"agreement {share} is no share")
        found.setdefault(update, {})[pair] = float(share)
    if not found:
        return None
    updates_found = sorted(found, key=lambda update: -1 if update is None else update)
    return Agreement(updates_found, [fmean(found[update].values()) for update in updates_found])
