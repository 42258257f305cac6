"""What can go wrong with an exchange, as errors that are sentences."""


class ExchangeError(Exception):
    """The exchange cannot be used as asked; the message says what to do."""


class SnapshotMissing(ExchangeError):
    """There is no such snapshot (yet, or any more)."""


class SnapshotRejected(ExchangeError):
    """A snapshot is there and fails a check; the message is the reason."""


class PeerUnusable(SnapshotRejected):
    """No snapshot of this peer can ever be used by this group, sound or not."""
