"""Snapshots of models, the store they live in, and moving them in the background.

Knows names -> tensors and bytes; no framework, and nothing of what a snapshot is used for.
"""

from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.exchange.copies import CopyOut, copy_out, first_names, ready_to_use
from fairseq_codistill.exchange.errors import (
    ExchangeError,
    PeerUnusable,
    SnapshotIncomplete,
    SnapshotMissing,
    SnapshotRejected,
    Unpublishable,
)
from fairseq_codistill.exchange.exchange import Draft, Exchange, Snapshot
from fairseq_codistill.exchange.manifest import LONGEST_RUN_ID, Manifest
from fairseq_codistill.exchange.prefetcher import Prefetcher
from fairseq_codistill.exchange.presence import Alive, Presence, lives, may_have_alive, read_alive
from fairseq_codistill.exchange.publisher import Publisher
from fairseq_codistill.exchange.reader import Reader
from fairseq_codistill.exchange.signing import key_from, say_what_it_does
from fairseq_codistill.exchange.store import Store
from fairseq_codistill.exchange.tensors import WIRE_DTYPES, shapes_digest

__all__ = [
    "LONGEST_RUN_ID",
    "WIRE_DTYPES",
    "Alive",
    "CopyOut",
    "Draft",
    "Exchange",
    "ExchangeError",
    "Manifest",
    "PeerUnusable",
    "Prefetcher",
    "Presence",
    "Publisher",
    "Reader",
    "Snapshot",
    "SnapshotIncomplete",
    "SnapshotMissing",
    "SnapshotRejected",
    "Store",
    "Unpublishable",
    "copy_out",
    "first_names",
    "key_from",
    "lives",
    "may_have_alive",
    "read_alive",
    "ready_to_use",
    "say_what_it_does",
    "shapes_digest",
    "within",
]
