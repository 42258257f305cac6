"""Signed manifests: groups that share a key use nothing that was published without it.

The signature is an HMAC-SHA256 over every other field of a manifest.  Among them are the run, the
group and the update, so that a snapshot cannot be passed off as another, and the digest of the
tensor file, so that its bytes are covered too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Mapping

from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected
from fairseq_codistill.exchange.manifest import Manifest
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

VARIABLE = "CODISTILL_KEY"
# A signed manifest is all that is needed to try keys, as many a second as a computer can.
LONG_ENOUGH = 16


def key_from(environ: Mapping[str, str]) -> bytes | None:
    """Give the key that the environment holds; None if it holds none.

    Raises:
        ExchangeError: if it holds an empty one: whoever sets a key means to have it used.
    """
    text = environ.get(VARIABLE)
    if text is None:
        return None
    if not text.strip():
        raise ExchangeError(
            f"{VARIABLE} is set, and is empty; give all groups one long random key in it, or unset "
            "it to leave snapshots unsigned"
        )
    return text.encode(errors="surrogateescape")


def say_what_it_does(key: bytes | None) -> None:
    """Log whether manifests are signed; warn of a key that is too short to keep anybody out."""
    if key is None:
        logger.info("manifests are not signed: there is no %s", VARIABLE)
        return
    logger.info("manifests are signed with %s, and those that are not are refused", VARIABLE)
    if len(key) < LONG_ENOUGH:
        # The message must not help to guess the key, so it does not say how long it is either.
        logger.warning(
            "the key in %s is shorter than %d characters and can be found by trying; snapshots "
            "are signed with it, but give all groups one long random key",
            VARIABLE,
            LONG_ENOUGH,
        )


def sign(manifest: Manifest, key: bytes) -> Manifest:
    """Give the manifest with its signature."""
    return dataclasses.replace(manifest, hmac=_signature(manifest, key))


def check(manifest: Manifest, key: bytes) -> None:
    """Make sure that a manifest was written by somebody who has the key.

    Raises:
        SnapshotRejected: if it was not.
    """
    if manifest.hmac is None:
        raise SnapshotRejected(
            f"its manifest is unsigned, and this group has a {VARIABLE}; give every group the same"
        )
    if not hmac.compare_digest(manifest.hmac, _signature(manifest, key)):
        raise SnapshotRejected(
            f"its manifest is signed with another {VARIABLE} than this group's, or was altered "
            "since; give every group the same key"
        )


def _signature(manifest: Manifest, key: bytes) -> str:
    return hmac.new(key, manifest.signed_content(), hashlib.sha256).hexdigest()
