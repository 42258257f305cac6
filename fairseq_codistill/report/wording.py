"""How a report writes numbers; ``-`` is what is not known."""

from __future__ import annotations

from fairseq_codistill.report.figures import Spread


def number(value: float, digits: str) -> str:
    """Write a number; the same one, however it was added up, comes out the same."""
    return f"{round(float(value), 9):{digits}}"


def spread(of: Spread | None, digits: str) -> str:
    """Write a mean, and in brackets the least and the greatest if they differ."""
    if of is None:
        return "-"
    mean, low, high = (number(value, digits) for value in (of.mean, of.min, of.max))
    return mean if low == high else f"{mean} ({low} to {high})"


def nll(of: Spread | None) -> str:
    """Write bits."""
    return spread(of, ".3f")


def percent(of: Spread | None) -> str:
    """Write what is in percent."""
    return spread(of, ".2f")


def whole(of: Spread | None) -> str:
    """Write the one number that all have, or the range."""
    if of is None:
        return "-"
    if of.min == of.max:
        return f"{of.min:,.0f}"
    return f"{of.min:,.0f} to {of.max:,.0f}"


def rate(of: Spread | None) -> str:
    """Write how many a second there are in the mean."""
    return "-" if of is None else f"{of.mean:,.0f}"


def share(of: Spread | None) -> str:
    """Write a share of one as percent, in the mean."""
    return "-" if of is None else f"{100 * of.mean:.2g} %"
