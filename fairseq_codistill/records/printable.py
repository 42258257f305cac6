"""Text from outside, made fit for a terminal, a log line or an error message."""

from __future__ import annotations

LONGEST = 500


def printable(text: object, longest: int = LONGEST) -> str:
    """Return ``text`` on one line, without control characters, at most ``longest`` characters.

    Newlines, escape sequences, lone surrogates and other characters that are not printable are
    written as Python escapes, for example ``\\n`` or ``\\x1b``.

    Args:
        text: anything; ``str()`` is taken of it, and where that fails, the name of its class.
        longest: characters; a longer text is cut and ends in ``...``.
    """
    # Cut first: escaping may make a text six times as long.
    raw = _text(text)
    cut = raw if len(raw) <= longest else raw[:longest]
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    if len(plain) > longest or len(cut) < len(raw):
        plain = plain[: max(longest - 3, 0)] + "..."
    return plain


def _text(value: object) -> str:
    try:
        return str(value)
    # Whatever it is: what is to be shown is often an error, and must not be hidden by another.
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__} that cannot be shown>"
