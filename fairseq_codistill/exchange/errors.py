"""What can go wrong with an exchange, as errors that are sentences."""

# Reasons quote what others wrote; longer ones are cut.
LONGEST_REASON = 500


class ExchangeError(Exception):
    """The exchange cannot be used as asked; the message says what to do."""


class SnapshotMissing(ExchangeError):
    """There is no such snapshot (yet, or any more)."""


class SnapshotRejected(ExchangeError):
    """A snapshot is there and fails a check; the message is the reason, one printable line."""

    def __init__(self, reason: str) -> None:
        super().__init__(_one_line(reason))


class SnapshotIncomplete(SnapshotRejected):
    """A snapshot may have been seen too early, as network file systems show it; look again."""


class Unpublishable(SnapshotRejected):
    """No reader would take this group's snapshot, and trying again would not change that."""


class PeerUnusable(SnapshotRejected):
    """No snapshot of this peer can ever be used by this group, sound or not."""


def _one_line(text: str) -> str:
    # Otherwise whoever writes to the exchange could write lines of this group's log.
    if len(text) > LONGEST_REASON:
        text = text[:LONGEST_REASON] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
