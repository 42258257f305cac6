"""Who listens to whom."""

from __future__ import annotations

from pathlib import Path

TOPOLOGIES = ("all", "ring", "star")


def listens_to(topology: str, groups: int, group: int) -> list[int]:
    """Give the groups that a group learns from: the j of the sum in Algorithm 1.

    Args:
        topology: ``all``: everyone to everyone else, as in the paper; ``ring``: i to i - 1;
            ``star``: 0 to each other and each other to 0; or the name of a file with a line
            ``GROUP: PEERS`` for each group, as in ``2: 0 1`` (nobody after the colon: that group
            trains alone, and others may learn from it; ``#`` begins a remark).
        groups: n.
        group: the one that listens.

    Returns:
        In ascending order; empty if it listens to nobody.

    Raises:
        ValueError: if there is no such topology, or the file does not fit; a sentence.
    """
    others = [j for j in range(groups) if j != group]
    if topology == "all":
        return others
    if topology == "ring":
        return [j for j in others if j == (group - 1) % groups]
    if topology == "star":
        return others if group == 0 else [0]
    return _read(topology, groups)[group]


def _read(path: str, groups: int) -> dict[int, list[int]]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        names = ", ".join(TOPOLOGIES)
        raise ValueError(f"this is none of {names}, and no file to read ({reason})") from None
    found: dict[int, list[int]] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        place = f"line {number}, '{text}'"
        try:
            (own,), peers = (list(map(int, part.split())) for part in text.split(":"))
        except ValueError:
            raise ValueError(f"{place}: write GROUP: PEERS, as in 2: 0 1") from None
        for j in (own, *peers):
            if not 0 <= j < groups:
                raise ValueError(f"{place}: there is no group {j}, only 0 to {groups - 1}")
        if own in found:
            raise ValueError(f"{place}: group {own} has a line already")
        if own in peers:
            raise ValueError(f"{place}: a group cannot listen to itself")
        if len(set(peers)) < len(peers):
            raise ValueError(f"{place}: a peer stands there twice")
        found[own] = sorted(peers)
    missing = [str(j) for j in range(groups) if j not in found]
    if missing:
        raise ValueError(
            f"it has no line for group {missing[0]}; a group that listens to nobody has nothing "
            "after the colon"
        )
    return found
