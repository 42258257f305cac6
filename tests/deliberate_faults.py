"""Deliberate faults, and whether the tests see them:  python tests/deliberate_faults.py [NAME ...]

Each fault is a small change to the package that breaks one guarantee.  The program makes the
change in a temporary copy of the repository, runs the tests that should see it there, and prints
``killed`` with the first test that failed, or ``SURVIVED``.  It exits with 1 if one survived.

Continuous integration does not run it, since it takes minutes; ``test_deliberate_faults.py``
checks that every fault can still be made.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A fault may make a test wait for what never comes.
TEST_SECONDS = 120

EXCHANGE = "fairseq_codistill/exchange"
CODISTILLATION = "fairseq_codistill/codistillation"
OBJECTIVE = "fairseq_codistill/objective"
CRITERION = "fairseq_codistill/criterions/codistill_cross_entropy.py"
TASK = "fairseq_codistill/tasks/codistill_translation.py"


@dataclass(frozen=True)
class Fault:
    """One change to the package that its tests must not miss.

    Attributes:
        name: for the command line.
        file: from the root of the repository.
        old: a text that occurs once in the file.
        new: what replaces it.
        tests: the test files that must see it, without ``tests/`` and ``.py``.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the file's text with the fault in it.

        Raises:
            ValueError: if ``old`` does not occur exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"fault {self.name}: its old text occurs {found} times in {self.file}; adapt it "
                "in tests/deliberate_faults.py so that it occurs once"
            )
        return text.replace(self.old, self.new)


def _exchange(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"{EXCHANGE}/{file}.py", old, new, tests or ("test_exchange",))


def _codistillation(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"{CODISTILLATION}/{file}.py", old, new, tests or ("test_codistillation",))


def _objective(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"{OBJECTIVE}/{file}.py", old, new, tests or ("test_objective",))


def _hidden(name: str, old: str, new: str) -> Fault:
    return Fault(name, "fairseq_codistill/criterions/_hidden.py", old, new, ("test_own_models",))


def _tasks(name: str, file: str, old: str, new: str) -> Fault:
    return Fault(name, f"fairseq_codistill/tasks/{file}.py", old, new, ("test_own_models",))


TRAIN_STEP = (
    "            return super().train_step("
    "sample, model, criterion, optimizer, update_num, ignore_grad)\n"
)
WRITE_TENSORS = '        self.store.write(f"{stem}.safetensors", data)\n'
WRITE_MANIFEST = '        self.store.write(f"{stem}.json", content)\n'
DELETE_MANIFEST = '        self.store.delete(f"{group_folder(group)}/{update:010d}.json")\n'
DELETE_TENSORS = '        self.store.delete(f"{group_folder(group)}/{update:010d}.safetensors")\n'


def _launch(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"fairseq_codistill/launch/{file}.py", old, new, tests)


def _export(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"fairseq_codistill/export/{file}.py", old, new, tests)


FAULTS = [
    # The order in which a snapshot comes to exist and goes.
    _exchange(
        "manifest-before-tensors",
        "exchange",
        WRITE_TENSORS + WRITE_MANIFEST,
        WRITE_MANIFEST + WRITE_TENSORS,
        "test_publish_order",
    ),
    _exchange(
        "tensors-pruned-before-manifest",
        "exchange",
        DELETE_MANIFEST + DELETE_TENSORS,
        DELETE_TENSORS + DELETE_MANIFEST,
        "test_publish_order",
    ),
    _exchange(
        "old-manifest-not-removed-first",
        "exchange",
        '        self.store.delete(f"{stem}.json")\n',
        "",
        "test_publish_order",
    ),
    _exchange(
        "bytes-renamed-before-they-are-on-disk",
        "local",
        "                    os.fsync(file.fileno())\n",
        "",
        "test_publish_order",
    ),
    # What is kept and what is swept.
    _exchange("prune-keeps-one-too-few", "exchange", "if kept <= keep:", "if kept < keep:"),
    _exchange(
        "prune-deletes-other-runs",
        "exchange",
        "            except SnapshotMissing:\n                # Another run's.\n"
        "                continue\n",
        "            except SnapshotMissing:\n                pass\n",
    ),
    _exchange(
        "sweep-takes-the-heartbeats-temporary",
        "exchange",
        ' and not name.startswith("alive.json.")',
        "",
    ),
    _exchange(
        "sweep-takes-tensors-with-a-manifest",
        "exchange",
        """name.endswith(".safetensors") and f"{name[:-12]}.json" not in names""",
        """name.endswith(".safetensors")""",
    ),
    _exchange(
        "damaged-snapshot-is-taken-for-published",
        "exchange",
        "there is not None and self._is_whole(there)",
        "there is not None",
    ),
    # What a reader checks.
    _exchange("reader-without-size-limit", "reader", "if size > self._largest:", "if False:"),
    _codistillation(
        "peers-without-size-limit", "meeting", "        largest=_largest(state()),\n", ""
    ),
    _codistillation(
        "size-limit-ignores-the-students-size",
        "meeting",
        "return max(SMALL_BYTES, LARGEST_RATIO * own)",
        "return SMALL_BYTES",
    ),
    _exchange(
        "digest-of-tensors-not-checked", "exchange", "if digest != manifest.sha256:", "if False:"
    ),
    _exchange(
        "misplaced-manifest-is-taken",
        "exchange",
        "if (manifest.group, manifest.update) != (group, update):",
        "if manifest.group != group:",
    ),
    _exchange(
        "manifest-of-another-group-is-taken",
        "exchange",
        "if (manifest.group, manifest.update) != (group, update):",
        "if manifest.update != update:",
    ),
    _exchange(
        "digest-of-shapes-without-shapes",
        "tensors",
        "[name, list(tensors[name].shape)]",
        "[name]",
    ),
    _exchange(
        "alias-may-hide-a-tensor",
        "tensors",
        "if name not in tensors or alias in tensors:",
        "if name not in tensors:",
    ),
    _exchange(
        "alias-may-point-nowhere",
        "tensors",
        "if name not in tensors or alias in tensors:",
        "if alias in tensors:",
    ),
    _exchange(
        "int8-times-scale-may-overflow",
        "tensors",
        "        # A large scale times a whole number may be more than there is.\n"
        "        _check_finite(tensors, dtype)\n",
        "",
        "test_exchange",
        "test_rows",
    ),
    _exchange(
        "newest-reads-the-one-in-use-again", "reader", "if update <= above:", "if update < above:"
    ),
    _exchange(
        "rejected-snapshots-are-read-again",
        "reader",
        "            if before is not None and not replaced and time.monotonic() < before.due:\n"
        "                continue\n",
        "",
    ),
    _exchange("equal-seeds-pass", "reader", "if manifest.seed == self._seed:", "if False:"),
    _exchange(
        "signature-leaves-the-epoch-out",
        "manifest",
        'fields.pop("hmac", None)\n',
        'fields.pop("hmac", None)\n        fields.pop("epoch", None)\n',
        "test_signing",
    ),
    _exchange(
        "signature-leaves-the-run-out",
        "manifest",
        'fields.pop("hmac", None)\n',
        'fields.pop("hmac", None)\n        fields.pop("run_id", None)\n',
        "test_signing",
    ),
    _exchange(
        "unsigned-manifests-pass",
        "signing",
        "if manifest.hmac is None:",
        "if False:",
        "test_signing",
    ),
    # Publishing and looking in the background.
    _exchange(
        "skipped-snapshots-are-not-counted",
        "publisher",
        "            if self._state is not _State.IDLE:\n                self.skipped += 1\n",
        "            if self._state is not _State.IDLE:\n                self.skipped += 0\n",
        "test_publisher",
    ),
    _exchange(
        "publisher-does-not-slow-down",
        "publisher",
        "pause = min(2 * pause, LONGEST_RETRY_SECONDS)",
        "pause = FIRST_RETRY_SECONDS",
        "test_publisher",
    ),
    _exchange(
        "publisher-does-not-wait-for-the-copy",
        "publisher",
        "                ready()\n",
        "",
        "test_publisher",
    ),
    _exchange(
        "publisher-does-not-prune",
        "publisher",
        "            self._exchange.prune(draft.group, self._keep)\n",
        "            pass\n",
        "test_publisher",
    ),
    _exchange(
        "publisher-does-not-sweep",
        "publisher",
        "            self._exchange.sweep(draft.group)\n",
        "",
        "test_publisher",
    ),
    _exchange(
        "prefetcher-does-not-slow-down-after-failures",
        "prefetcher",
        "min(2 * pause, LONGEST_PAUSE_SECONDS)",
        "pause",
        "test_sources",
    ),
    _exchange(
        "prefetcher-looks-as-often-for-ever",
        "prefetcher",
        "max(POLL_SECONDS, LATE * waited)",
        "POLL_SECONDS",
        "test_sources",
    ),
    _exchange(
        "prefetcher-never-gives-up",
        "prefetcher",
        "hopeless = time.monotonic() > patience_ends",
        "hopeless = False",
        "test_sources",
    ),
    _exchange(
        "prefetcher-keeps-what-is-no-longer-asked-for",
        "prefetcher",
        "if above != self._above.get(peer) or exact != self._exact.get(peer, (None, 0))[0]:",
        "if False:",
        "test_sources",
    ),
    # What the workers of a group agree on.
    _codistillation(
        "digest-left-out-of-the-agreement",
        "sources",
        "            digest = int(snapshot.manifest.sha256[:15], 16)\n",
        "            digest = 0\n",
        "test_sources",
    ),
    _codistillation(
        "digest-not-looked-at",
        "sources",
        " and digest_low == -digest_high",
        "",
        "test_sources",
    ),
    _codistillation(
        "different-files-are-the-last-ones",
        "sources",
        "(of_one_update or given_up == leads)",
        "(agreed or given_up == leads)",
        "test_sources",
    ),
    _codistillation(
        "leader-looks-for-what-it-has",
        "sources",
        "self._prefetcher.look(peer, above=leads)",
        "self._prefetcher.look(peer, above=leads - 1)",
        "test_sources",
    ),
    _codistillation(
        "lockstep-takes-the-next-multiple",
        "sources",
        "due = update - update % self._interval",
        "due = update + -update % self._interval",
        "test_sources",
    ),
    _codistillation(
        "lockstep-worker-fails-alone",
        "sources",
        "self._workers.least([0 if failure else 1])",
        "[1]",
        "test_sources",
    ),
    _codistillation(
        "lockstep-believes-a-former-life",
        "prospects",
        "not of_this_run or self._is_of_a_former_start(peer, alive):",
        "not of_this_run:",
        "test_prospects",
    ),
    _codistillation(
        "lockstep-takes-this-starts-words-for-a-former-ones",
        "prospects",
        "            return alive.start != self._start\n",
        "            pass\n",
        "test_prospects",
    ),
    _codistillation(
        "lockstep-takes-what-could-not-be-read-for-nothing",
        "prospects",
        "if alive is not None or not may_have_alive(self._exchange.store, peer):",
        "if True:",
        "test_prospects",
    ),
    _codistillation(
        "a-worker-in-lockstep-stops-alone",
        "acceptance",
        "if self._lockstep and self._workers.least([self._new[peer.group]]) == [_OBJECTS]:",
        "if self._lockstep and [self._new[peer.group]] == [_OBJECTS]:",
        "test_acceptance",
    ),
    _codistillation(
        "another-trainings-snapshots-are-removed",
        "membership",
        "for manifest in found if self._is_ours(manifest)]",
        "for manifest in found]",
        "test_codistillation",
    ),
    _exchange(
        "what-replaces-a-rejected-snapshot-is-not-read",
        "reader",
        "before is not None and not replaced and time",
        "before is not None and time",
        "test_unsound",
    ),
    _exchange(
        "slow-heartbeats-are-none",
        "presence",
        "WATCHED_BEATS = 5",
        "WATCHED_BEATS = 1.5",
        "test_presence",
    ),
    # What no peer would take is not published, and stops lockstep.
    _exchange(
        "what-is-not-finite-is-published",
        "tensors",
        "    _accept(packed, aliases or {}, dtype)\n",
        "",
        "test_unsound",
    ),
    _exchange(
        "header-is-not-checked-before-publishing",
        "tensors",
        "    data = _saved(packed)\n    check_header(data, dtype)\n",
        "    data = _saved(packed)\n",
        "test_unsound",
    ),
    _exchange(
        "unpublishable-is-tried-again-and-again",
        "publisher",
        "except Unpublishable as refusal:",
        "except ZeroDivisionError as refusal:",
        "test_unsound",
    ),
    _exchange(
        "unpublishable-is-not-counted",
        "publisher",
        "        with self._changed:\n            self.skipped += 1\n            logger.error(",
        "        with self._changed:\n            self.skipped += 0\n            logger.error(",
        "test_unsound",
    ),
    _exchange(
        "reason-is-drawn-at-random",
        "tensors",
        "for name in sorted(packed)}",
        "for name in packed}",
        "test_unsound",
    ),
    _codistillation(
        "never-publishable-trains-all-the-same",
        "membership",
        "        self._rehearse()\n",
        "",
        "test_codistillation",
    ),
    # What was seen too early, and what was rejected.
    _exchange(
        "seen-too-early-is-rejected-for-good",
        "reader",
        "may_pass = isinstance(rejection, SnapshotIncomplete)",
        "may_pass = False",
        "test_unsound",
    ),
    _exchange(
        "seen-too-early-is-read-for-ever",
        "reader",
        "if may_pass and looks < len(PAUSES):",
        "if may_pass:",
        "test_unsound",
    ),
    _exchange(
        "no-pause-between-two-looks",
        "reader",
        "due = time.monotonic() + PAUSES[looks]",
        "due = time.monotonic()",
        "test_unsound",
    ),
    _exchange(
        "rejected-tensors-are-read-again",
        "reader",
        "if before is None or before.manifest != manifest or time.monotonic() >= before.due:",
        "if True:",
        "test_unsound",
    ),
    _exchange(
        "replacement-of-what-was-rejected-is-not-read",
        "reader",
        "before is None or before.manifest != manifest or",
        "before is None or",
        "test_unsound",
    ),
    _exchange(
        "each-look-at-a-part-is-a-line",
        "reader",
        "if not (same and may_pass):",
        "if True:",
        "test_unsound",
    ),
    _exchange(
        "manifest-in-part-is-final",
        "manifest",
        'raise SnapshotIncomplete(f"its manifest',
        'raise SnapshotRejected(f"its manifest',
        "test_unsound",
    ),
    _exchange(
        "tensors-not-there-yet-are-missing",
        "reader",
        "            if self.exchange.manifest(manifest.group, manifest.update) != manifest:\n"
        "                raise\n",
        "            raise\n",
        "test_unsound",
    ),
    _exchange(
        "worker-gives-up-what-is-on-its-way",
        "prefetcher",
        "            except SnapshotIncomplete:\n                pass",
        "            except ZeroDivisionError:\n                pass",
        "test_unsound",
    ),
    # Other words, other formats, other runs.
    _exchange(
        "another-source-vocabulary-passes",
        "reader",
        "if own is not None and theirs is not None and theirs != own:",
        "if False:",
        "test_unsound",
        "test_codistillation",
    ),
    _codistillation(
        "another-source-vocabulary-is-no-reason-to-stop",
        "membership",
        '            ("source", alive.source_vocabulary, self._group.source_vocabulary),\n',
        "",
        "test_codistillation",
    ),
    _exchange(
        "format-1-is-not-read",
        "manifest",
        "FORMATS = (1, 2)",
        "FORMATS = (2,)",
        "test_formats",
    ),
    _exchange(
        "format-1-is-written-as-format-2",
        "manifest",
        "        return cls(**fields)\n",
        '        return cls(**(fields | {"format": FORMAT}))\n',
        "test_formats",
    ),
    _exchange(
        "source-vocabulary-is-not-signed",
        "manifest",
        'fields.pop("hmac", None)\n',
        'fields.pop("hmac", None)\n        fields.pop("source_vocabulary", None)\n',
        "test_formats",
    ),
    _exchange(
        "source-vocabulary-in-format-1",
        "manifest",
        '_OPTIONAL = {1: {"hmac"},',
        '_OPTIONAL = {1: {"hmac", "source_vocabulary"},',
        "test_formats",
    ),
    _exchange(
        "other-runs-are-read-at-every-look",
        "exchange",
        "                self._foreign.note(group, update, listed[update])\n",
        "                pass\n",
        "test_unsound",
    ),
    _exchange(
        "other-runs-are-never-looked-at-again",
        "known",
        "        if entry is None or entry.mark != mark:\n"
        "            return False\n"
        "        return mark is not None or time.monotonic() < entry.until\n",
        "        return entry is not None\n",
        "test_unsound",
    ),
    _exchange(
        "unmarked-listings-are-believed-for-ever",
        "known",
        "return mark is not None or time.monotonic() < entry.until",
        "return True",
        "test_store",
    ),
    _exchange(
        "mark-leaves-out-which-file-it-is",
        "local",
        "telling = (status.st_ino, status.st_mtime_ns, status.st_size)",
        "telling = (status.st_dev, 0, status.st_size)",
        "test_store",
    ),
    _exchange(
        "empty-key-means-unsigned",
        "signing",
        "    if not text.strip():\n",
        "    if not text.strip():\n        return None\n    if False:\n",
        "test_signing",
    ),
    # Lockstep: a final bad state is not waited for.
    _codistillation(
        "end-for-good-is-waited-for",
        "prospects",
        "        if alive.failure is not None:\n            raise NeverComes(\n",
        "        if False:\n            raise NeverComes(\n",
        "test_prospects",
    ),
    _codistillation(
        "who-is-gone-is-waited-for",
        "prospects",
        "        elif not alive.running:\n",
        "        elif False:\n",
        "test_prospects",
    ),
    _codistillation(
        "who-comes-back-is-not-waited-for",
        "prospects",
        "return alive.returns and not alive.running",
        "return GONE_SECONDS",
        "test_prospects",
    ),
    _codistillation(
        "what-is-unsound-for-good-is-waited-for",
        "prospects",
        "if final and not isinstance(rejection, SnapshotIncomplete):",
        "if False:",
        "test_prospects",
    ),
    _codistillation(
        "peers-reason-is-not-made-printable",
        "prospects",
        "    return printable(failure, LONGEST_FAILURE)\n",
        "    return failure\n",
        "test_prospects",
    ),
    _codistillation(
        "own-unsound-snapshot-is-not-noticed-while-waiting",
        "sources",
        "            self._own.check_published()\n",
        "            pass\n",
        "test_prospects",
        "test_codistillation",
    ),
    _codistillation(
        "other-workers-are-not-told",
        "prospects",
        "alive.failure is None:\n            return\n",
        "alive.failure is None or True:\n            return\n",
        "test_prospects",
    ),
    _codistillation(
        "what-does-not-fit-is-not-passed-on",
        "sources",
        "            self._own.note_failure(failure)\n",
        "            pass\n",
        "test_prospects",
    ),
    _codistillation(
        "why-it-ends-is-not-passed-on",
        "sources",
        "                self._own.note_failure(str(error))\n",
        "                pass\n",
        "test_codistillation",
    ),
    _codistillation(
        "unsound-weights-that-end-training-are-not-told",
        "membership",
        "refused = self._refused() if self._lockstep else None",
        "refused = None",
        "test_codistillation",
    ),
    _codistillation(
        "output-that-is-not-finite-is-not-passed-on",
        "algorithm",
        "                    self._membership.note_failure(str(error))\n",
        "                    pass\n",
        "test_acceptance",
    ),
    _launch(
        "heartbeat-alone-is-believed-to-be-the-end",
        "group",
        "return any(said == error_in(line) for one in self._processes for line in one.output())",
        "return True",
        "test_launch_supervise",
    ),
    _launch(
        "another-workers-last-words-are-not-read",
        "group",
        "return any(said == error_in(line) for one in self._processes for line in one.output())",
        "return any(said == error_in(s) for s in self._failed.output())",
        "test_launch_supervise",
    ),
    _launch(
        "what-another-logger-quotes-is-believed-to-be-the-end",
        "group",
        "any(said == error_in(line) for one",
        "any(said[1] in line for one",
        "test_launch_supervise",
    ),
    _launch(
        "a-line-that-is-cut-off-is-taken-for-a-whole-one",
        "process",
        "            lines = lines[1:]\n",
        "            pass\n",
        "test_launch_supervise",
    ),
    Fault(
        "a-record-in-a-traceback-is-one",
        "fairseq_codistill/records/training_log.py",
        "found = _ERROR.match(line)",
        "found = _ERROR.search(line)",
        ("test_launch_supervise",),
    ),
    _launch(
        "restarts-that-are-left-are-not-told",
        "group",
        "worker = replace(worker, env={**worker.env, **left})",
        "worker = replace(worker, env={**worker.env, 'LEFT': str(left)})",
        "test_launch_supervise",
    ),
    _launch(
        "what-ends-for-good-is-started-again",
        "group",
        "        if final or again or",
        "        if again or",
        "test_launch_supervise",
    ),
    # Alpha.
    _objective(
        "burn-in-one-update-longer", "alpha", "update < self.burn_in", "update <= self.burn_in"
    ),
    _objective(
        "alpha-of-the-next-epoch", "alpha", "self.growth ** (epoch - 1)", "self.growth ** epoch"
    ),
    _objective(
        "milestone-one-epoch-early", "alpha", "if epoch > milestone", "if epoch >= milestone"
    ),
    _objective("alpha-without-its-cap", "alpha", "if self.cap is None else", "if True else"),
    _objective("every-kth-update-without-its-factor", "alpha", "else alpha * every", "else alpha"),
    _objective("every-kth-update-shifted", "alpha", "if update % every", "if (update + 1) % every"),
    _codistillation(
        "alpha-of-the-epoch-before",
        "algorithm",
        "self._schedule(epoch, update)",
        "self._schedule(self.epoch - 1, update)",
    ),
    # Which peers count.
    _codistillation(
        *("any-output-counts", "acceptance", "peer.group not in self._objections", "True"),
        "test_acceptance",
    ),
    _codistillation(
        *("an-objection-stays-one-workers", "acceptance", "if verdict == _OBJECTS:", "if False:"),
        "test_acceptance",
    ),
    _codistillation(
        "a-few-rows-are-to-be-finite",
        *("acceptance", "_finite(peer)[usable].all()", "_finite(peer)[usable][:ROWS].all()"),
        "test_acceptance",
    ),
    _codistillation(
        "padding-is-compared",
        *("acceptance", "usable &= targets >= 0", "usable &= targets >= -1"),
        "test_acceptance",
    ),
    _codistillation(
        "offsets-never-count",
        *("acceptance", "if centered else difference", "if True else difference"),
        "test_acceptance",
    ),
    _codistillation(
        "a-distance-of-nan-passes",
        *("acceptance", "if not distance <= TIMES", "if distance > TIMES"),
        "test_acceptance",
    ),
    _codistillation(
        "cross-entropy-is-not-asked",
        *("acceptance", "if peer_nll <= TIMES_WORSE", "if True or peer_nll <= TIMES_WORSE"),
        "test_acceptance",
    ),
    _codistillation(
        "a-worker-that-cannot-load-does-not-vote",
        "algorithm",
        "            self._acceptance.renew(manifest.group)\n            try:\n"
        "                peer.load(snapshot)\n",
        "            try:\n                peer.load(snapshot)\n"
        "                self._acceptance.renew(manifest.group)\n",
        "test_acceptance",
    ),
    _codistillation(
        "accepted-or-not-it-is-a-peer",
        "algorithm",
        "if why is None:",
        "if True:",
        "test_acceptance",
    ),
    Fault(
        "images-begin-with-the-papers-alpha",
        "fairseq_codistill/vision/settings.py",
        "min(1.0, math.sqrt(classes / PAPER_CLASSES))",
        "1.0",
        ("test_vision_alpha",),
    ),
    Fault(
        "an-update-ends-in-a-traceback",
        "fairseq_codistill/tasks/codistill_translation.py",
        "        with errors_as_sentences():\n            return super().train_step",
        "        if True:\n            return super().train_step",
        ("test_adapter",),
    ),
    # The term.
    _codistillation("mean-over-n", "algorithm", "total / counted", "total / (counted + 1)"),
    _codistillation("sum-over-peers", "algorithm", "total / counted", "total / 1"),
    _codistillation(
        "randomness-of-peers-not-kept-apart",
        "algorithm",
        "with torch.random.fork_rng(devices=cuda_devices()):\n            counted",
        "if True:\n            counted",
    ),
    _codistillation(
        "gradient-through-the-peer", "algorithm", "with torch.no_grad():\n", "if True:\n"
    ),
    _codistillation(
        "weight-ignores-every",
        "algorithm",
        "return weight(self.alpha, self.update, self._every)",
        "return weight(self.alpha, self.update, 1)",
    ),
    _objective("kl-without-t-squared", "divergence", " * temperature**2", ""),
    _objective(
        "kl-turned-round",
        "divergence",
        "F.kl_div(student_log_probs, peer_log_probs,",
        "F.kl_div(peer_log_probs, student_log_probs,",
    ),
    _objective(
        "naive-form-not-centred",
        "divergence",
        "(difference - difference.mean(dim=-1, keepdim=True))",
        "difference",
    ),
    _objective(
        "factored-form-not-centred", "factored", "if not centered:", "if True:", "test_factored"
    ),
    _objective("factored-form-may-be-negative", "factored", ".clamp_(min=0)", "", "test_factored"),
    _objective(
        "factored-form-under-autocast",
        "factored",
        "enabled=False",
        "enabled=True",
        "test_factored",
    ),
    _objective(
        "factored-form-in-tf32",
        "factored",
        '"fp32_precision", "ieee"',
        '"fp32_precision", "tf32"',
        "test_factored",
    ),
    _objective(
        "factored-form-leaves-its-precision-behind",
        "factored",
        "        setattr(torch.backends.cuda.matmul, switch, before)\n",
        "        pass\n",
        "test_factored",
    ),
    _objective(
        "smoothing-of-the-right-class", "fused", "slope -= each", "slope -= 0", "test_fused"
    ),
    # What only a GPU, or half precision, shows.
    _objective(
        "a-tensor-is-left-on-the-cpu",
        "factored",
        "gram = mean.new_zeros(len(mean), len(mean))",
        "gram = torch.zeros(len(mean), len(mean))",
        "test_fake_cuda",
    ),
    _objective(
        "a-float16-product-in-the-factored-form",
        "factored",
        "by_other = other @ peer.own.gram.to(h.dtype) - h @ peer.cross",
        "by_other = (other.half() @ peer.own.gram.half()).to(h.dtype) - h @ peer.cross",
        "test_fake_cuda",
    ),
    _objective(
        "autocast-of-a-gpu-is-left-on",
        "factored",
        "with torch.autocast(like.device.type, enabled=False):",
        'with torch.autocast("cpu", enabled=False):',
        "test_fake_cuda",
    ),
    Fault(
        "rows-are-taken-for-nothing",
        CRITERION,
        "if (fused or asks) and layer is not None",
        "if layer is not None",
        ("test_fake_cuda",),
    ),
    Fault(
        "a-counter-is-read-before-the-commit",
        TASK,
        TRAIN_STEP,
        TRAIN_STEP.replace("return", "output =")
        + "            if self.codistillation is not None:\n"
        + "                self.codistillation.note_logged()\n"
        + "            return output\n",
        ("test_half_precision",),
    ),
    Fault(
        "an-overflow-repeats-the-boundary",
        TASK,
        "if self.codistillation is not None and boundary != self._boundary:",
        "if self.codistillation is not None:",
        ("test_half_precision",),
    ),
    # Products of output layers that hold no longer.
    _codistillation(
        "stale-gram-of-the-student",
        "comparison",
        "        self._student = None\n        self._crosses.clear()\n",
        "        self._crosses.clear()\n",
        "test_comparison",
    ),
    _codistillation(
        "stale-cross-products",
        "comparison",
        "        self._crosses.clear()\n",
        "",
        "test_comparison",
    ),
    _codistillation(
        "stale-gram-of-a-peer",
        "comparison",
        "if made is None or update != peer.update:",
        "if made is None:",
        "test_comparison",
    ),
    _codistillation(
        "cross-product-with-a-former-snapshot",
        "comparison",
        "            self._crosses.pop(peer, None)\n",
        "",
        "test_comparison",
    ),
    _codistillation(
        "one-gram-for-all-peers",
        "comparison",
        "self._owns.get(peer, (None, None))",
        "next(iter(self._owns.values()), (None, None))",
        "test_comparison",
    ),
    _codistillation(
        "products-never-renewed", "algorithm", "        self._compare.begin_update()\n", ""
    ),
    # Peers.
    _codistillation(
        "peer-in-training-mode", "peer", "            module.eval()\n", "            pass\n"
    ),
    _codistillation(
        "batch-norm-of-peers-in-training-mode",
        "peer",
        "            part.eval()\n",
        "            pass\n",
    ),
    _codistillation(
        "randomness-of-building-not-kept-apart",
        "peer",
        "with torch.random.fork_rng(devices=cuda_devices()):",
        "if True:",
    ),
    _codistillation(
        "peer-keeps-its-first-architecture",
        "peer",
        "if module is None or config != self._config:",
        "if module is None:",
    ),
    _codistillation(
        "tensors-of-another-model-are-adopted",
        "peer",
        "if shapes_digest(module.state_dict()) != snapshot.manifest.shapes:",
        "if False:",
    ),
    _codistillation(
        "peer-forgets-how-old-it-is",
        "peer",
        "        self.update = snapshot.manifest.update\n",
        "        self.update = self.update or snapshot.manifest.update\n",
    ),
    # Staleness.
    _codistillation(
        "staleness-with-the-wrong-sign",
        "algorithm",
        "ages = [self.update - peer.update for",
        "ages = [peer.update - self.update for",
    ),
    _codistillation(
        "stale-one-update-early",
        "algorithm",
        "if staleness > self._max_staleness and",
        "if staleness >= self._max_staleness and",
    ),
    _codistillation(
        "back-one-update-late",
        "algorithm",
        "elif staleness <= self._max_staleness and",
        "elif staleness < self._max_staleness and",
    ),
    # Who listens to whom.
    _codistillation(
        "ring-the-other-way-round",
        "topology",
        "(group - 1) % groups",
        "(group + 1) % groups",
        "test_topology",
    ),
    _codistillation(
        "star-without-its-centre",
        "topology",
        "others if group == 0 else [0]",
        "[0]",
        "test_topology",
    ),
    # Stall, and what else is logged.
    _codistillation(
        "waiting-for-own-workers-counts",
        "algorithm",
        "            self._stall -= self.workers.waited - waited\n",
        "            pass\n",
        "test_stall",
    ),
    Fault(
        "stall-not-divided-by-the-workers",
        CRITERION,
        'total("codistill_stall") / batches',
        'total("codistill_stall")',
        ("test_criterion_log",),
    ),
    Fault(
        "stall-of-images-not-divided-by-the-workers",
        "fairseq_codistill/vision/logs.py",
        'total["stall"] / workers',
        'total["stall"]',
        ("test_stall",),
    ),
    Fault(
        "padding-counts-in-the-naive-form",
        CRITERION,
        "rows.masked_fill(~keep.view_as(rows), 0).sum()",
        "rows.sum()",
        ("test_criterion_log",),
    ),
    Fault(
        "padding-counts-in-the-factored-form",
        CRITERION,
        'keep = sample["target"] != self.padding_idx',
        'keep = sample["target"] == sample["target"]',
        ("test_adapter",),
    ),
    Fault(
        "batches-without-a-peer-count-in-the-mean-divergence",
        CRITERION,
        '"codistill_tokens": sample["ntokens"] if live else 0',
        '"codistill_tokens": sample["ntokens"]',
        ("test_criterion_log",),
    ),
    Fault(
        "what-is-lost-with-an-overflow-is-not-logged",
        CRITERION,
        "            leads = int(codistillation.workers.leader)\n",
        "            codistillation.note_logged()\n"
        "            leads = int(codistillation.workers.leader)\n",
        ("test_adapter",),
    ),
    Fault(
        "validation-takes-what-training-has-counted",
        "fairseq_codistill/tasks/codistill_translation.py",
        "self.codistillation is not None and logged:",
        "self.codistillation is not None:",
        ("test_adapter",),
    ),
    Fault(
        "updates-that-ask-no-peer-tell-of-peers",
        "fairseq_codistill/codistillation/seam.py",
        "len(side.peers) if side.weight or side.alpha == 0 else None",
        "len(side.peers)",
        ("test_criterion_log", "test_adapter"),
    ),
    Fault(
        "changes-are-counted-by-every-worker",
        CRITERION,
        "leads = int(codistillation.workers.leader)",
        "leads = 1",
        ("test_criterion_log",),
    ),
    Fault(
        "divergence-in-the-validation-loss",
        CRITERION,
        "if not (model.training and reduce):",
        "if not reduce:",
        ("test_criterion_log",),
    ),
    # Other people's models.
    _hidden(
        "logits-are-the-layers-whatever-became-of-them",
        "plain = first(returned[0]) is call.made and call.unchanged(layer)",
        "plain = True",
    ),
    _hidden(
        "writes-to-logits-are-not-seen",
        "plain = first(returned[0]) is call.made and call.unchanged(layer)",
        "plain = first(returned[0]) is call.made",
    ),
    _hidden(
        "an-exchanged-weight-is-not-seen",
        "return same and layer.weight.is_set_to(self.weight)",
        "return same",
    ),
    _hidden(
        "a-second-call-of-the-layer-is-not-seen",
        "if len(calls) != 1 or len(returned) != 1:",
        "if not calls:",
    ),
    _hidden(
        "numbers-are-not-compared",
        "return bool((near.all() | ~due.isfinite().all()).item())",
        "return True",
    ),
    _hidden(
        "looking-at-a-peer-draws-random-numbers",
        "with torch.random.fork_rng(devices=cuda_devices()):",
        "with torch.no_grad():",
    ),
    Fault(
        "a-flag-that-cannot-be-honoured-is-ignored",
        CRITERION,
        'if self.task.cfg.codistill_head != "auto":',
        "if False:",
        ("test_own_models",),
    ),
    Fault(
        "no-settings-but-one-row",
        CRITERION,
        "rows_by_settings(task.cfg.max_tokens, task.cfg.batch_size)",
        "1",
        ("test_own_models",),
    ),
    _objective(
        "joint-squares-in-place",
        "joint",
        ".square().sum(dim=1)",
        ".square_().sum(dim=1)",
        "test_joint",
    ),
    _objective(
        "joint-sums-in-half-precision",
        "joint",
        "            setattr(matmul, switch, False)\n",
        "            pass\n",
        "test_joint",
    ),
    _objective(
        "joint-rounds-each-models-logits",
        "joint",
        "made.append(F.linear(rows, layer, None if shift is None else shift.to(compute)))",
        "width = student.rows.size(1)\n"
        "                    made.append(F.linear(rows[:, :width], layer[:, :width]) + "
        "F.linear(rows[:, width:], layer[:, width:], shift))",
        "test_joint",
    ),
    _objective(
        "joint-lets-a-long-sum-overflow",
        "joint",
        " * math.sqrt(len(hidden))",
        "",
        "test_joint",
    ),
    _codistillation(
        "half-precision-takes-the-naive-form",
        "comparison",
        "joins = half and self._can_join",
        "joins = False",
        "test_comparison",
    ),
    _codistillation(
        "half-precision-on-a-gpu-is-not-looked-at",
        "comparison",
        "    if half_on_gpu:\n",
        "    if False:\n",
        "test_comparison",
    ),
    _tasks(
        "a-loss-of-ones-own-is-passed-over",
        "codistill_translation",
        "if fused and not (output_layer(model) and has_usual_loss(model)):",
        "if fused and not output_layer(model):",
    ),
    _tasks(
        "nonautoregressive-models-are-taken",
        "codistill_translation",
        '        if reason is not None:\n            raise ConfigError(f"--arch',
        '        if False:\n            raise ConfigError(f"--arch',
    ),
    _tasks(
        "attention-is-fused-in-any-decoder",
        "_models",
        "        type(decoder) not in (TransformerDecoderBase, TransformerDecoder)\n        or ",
        "        decoder is None\n        and ",
    ),
    _tasks(
        "what-a-peer-lacks-is-taken-from-this-group",
        "_models",
        "if name not in lacking}",
        "}",
    ),
    _tasks(
        "required-flags-are-asked-for",
        "_peer_config",
        "        action.required = False\n",
        "        pass\n",
    ),
    _tasks(
        "any-architecture-is-trusted",
        "_peer_config",
        "known = model in KNOWN_MODELS or arch in trusted or model in trusted",
        "known = True",
    ),
    _tasks(
        "digests-are-not-compared",
        "_peer_config",
        "if is_digest(value) and value != own.get(name):",
        "if False:",
    ),
    _tasks(
        "fp16-without-a-gpu-is-taken",
        "_precision",
        "if fp16 and flat and not _has_gpu():",
        "if False:",
    ),
    Fault(
        "batch-norm-over-one-value",
        "fairseq_codistill/vision/models.py",
        "    if batch_size > 1:\n",
        "    if batch_size > 0:\n",
        ("test_vision_errors",),
    ),
    # Peers' own predictions.
    _codistillation(
        "mean-over-all-groups",
        "predictions",
        "return total / len(self._listens_to)",
        "return total / self._groups",
        "test_vision_predictions",
    ),
    # What launch takes for the end of a group.
    _launch(
        "status-0-is-an-end",
        "group",
        "        if missing is None:\n",
        "        if missing is None or self.name:\n",
        "test_finished",
    ),
    _launch(
        "evidence-of-an-earlier-process",
        "group",
        "        self._finished.forget()\n",
        "",
        "test_finished",
    ),
    _launch(
        "log-and-evidence-not-compared",
        "finished",
        "if logged_update is not None and logged_update > ended.update:",
        "if False:",
        "test_finished",
    ),
    _launch(
        "heartbeat-and-evidence-not-compared",
        "finished",
        "if alive is not None and ours and alive.update > ended.update:",
        "if False:",
        "test_finished",
    ),
    _launch(
        "evidence-of-another-process",
        "finished",
        "if (ended.run_id, ended.nonce) != (self._run_id, self._nonce):\n            return f",
        "if ended.run_id != self._run_id:\n            return f",
        "test_finished",
    ),
    _launch(
        "a-group-alone-is-a-success",
        "supervise",
        "return statuses.NO_PEERS if alone else statuses.FINISHED",
        "return statuses.FINISHED",
        "test_finished",
    ),
    _launch(
        "the-mark-forgets-who-was-alone",
        "finished",
        "        self.missed_its_peers = ended.missed_its_peers\n        self._marked",
        "        self._marked",
        "test_finished",
    ),
    # What may not end or restart a group.
    _launch(
        "output-written-by-the-supervisor-itself",
        "view",
        "        with self._changed:\n            self._waiting.append(data)\n",
        "        os.write(self._descriptor, data)\n        with self._changed:\n",
        "test_launch_robust",
    ),
    _launch(
        "encodings-are-strict",
        "view",
        'data = text.encode(encoding, errors="backslashreplace")',
        "data = text.encode(encoding)",
        "test_launch_robust",
    ),
    _launch(
        "a-truncated-log-is-not-noticed",
        "progress",
        "                self._lines.restart()\n",
        "                pass\n",
        "test_launch_progress",
    ),
    _launch(
        "an-unreadable-log-is-a-hang",
        "pulse",
        "        if told is None and not readable:\n            self.hold(now)\n",
        "",
        "test_launch_robust",
    ),
    _launch(
        "a-suspended-launch-sees-hangs",
        "supervise",
        "if now - before > _ASLEEP:",
        "if False:",
        "test_launch_robust",
    ),
    _launch(
        "a-mark-that-fails-ends-launch",
        "retry",
        "except (OSError, ValueError, UserError) as error:",
        "except UserError as error:",
        "test_launch_robust",
    ),
    _launch(
        "a-mark-is-tried-once",
        "retry",
        "        self.done = False\n",
        "        self.done = False\n        self._due, self._pause = 0.0, 1e9\n",
        "test_launch_robust",
    ),
    _launch(
        "an-error-of-launch-ends-it",
        "supervise",
        "except Exception as error:  # noqa: BLE001 - whatever it is",
        "except ZeroDivisionError as error:  # whatever it is",
        "test_launch_robust",
    ),
    _launch(
        "a-start-that-fails-ends-launch",
        "group",
        "        except OSError as error:\n            # Its directory",
        "        except ZeroDivisionError as error:\n            # Its directory",
        "test_launch_robust",
    ),
    _launch(
        "the-newest-time-and-not-the-update",
        "checkpoints",
        "return (-1 if self.update is None else self.update, self.time,",
        "return (self.time, -1 if self.update is None else self.update,",
        "test_launch_checkpoints",
    ),
    # How the exchange is met.
    _codistillation(
        "a-counter-of-restarts-is-proof",
        "membership",
        "needed=self._lockstep or not met_before",
        'needed=self._lockstep or os.environ.get("CODISTILL_RESTARTS", "0") == "0"',
        "test_meeting",
    ),
    _exchange(
        "the-heartbeat-is-not-read-back",
        "presence",
        "if back is None or back.nonce != self._alive.nonce:",
        "if False:",
        "test_meeting",
    ),
    _exchange(
        "names-are-not-listed",
        "presence",
        "if NAME not in self._store.names(group_folder(self._group)):",
        "if False:",
        "test_meeting",
    ),
    _codistillation(
        "workers-do-not-look-for-the-leader",
        "meeting",
        "    (all_see,) = workers.least([int(sees)])\n",
        "    all_see = True\n",
        "test_meeting",
    ),
    _codistillation(
        "no-address-is-refused",
        "meeting",
        "        check_address(str(config.codistill_dir))\n",
        "        pass\n",
        "test_meeting",
    ),
    Fault(
        "met-whatever-the-address",
        "fairseq_codistill/records/memory.py",
        'before.get("met") == exchange',
        '"met" in before',
        ("test_meeting",),
    ),
    # A relaunch with other settings.
    _launch(
        "relaunch-takes-any-setting",
        "changed",
        "    if refused:\n",
        "    if False:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-lets-the-print-pass",
        "run",
        "    relaunch = changed.changes(plan, record.read(plan.out), options.allow_changed)\n",
        "    relaunch = changed.Relaunch()\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-forgets-flags-of-single-groups",
        "changed",
        "        own = self.flags.get(group, ())\n",
        "        own = ()\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-forgets-the-number-of-workers",
        "changed",
        "if before.workers is not None and before.workers != now.workers:",
        "if False:",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-fewer-workers-for-the-same-batch",
        "changed",
        "[number * workers for number in told]",
        "[number for number in told]",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-does-not-look-into-files",
        "changed",
        "    if first is not None and second is not None:\n",
        "    if False:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-a-word-for-a-path",
        "values",
        "return old == new and not any(os.path.lexists(place) for place in was)",
        "return False",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-another-directory-for-the-same",
        "values",
        "    if old == new and setting not in _PATHS:\n",
        "    if old == new:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-the-plugin-of-another-clone-for-another",
        "values",
        """if setting == "user-dir" and {PurePath(old)""",
        """if old != new and setting == "user-dir" and {PurePath(old)""",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-a-copied-project-for-another",
        "changed",
        "moved = None if before.out is None else move(",
        "moved = None if True else move(",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-other-data-for-a-copy",
        "values",
        "return _listed(old) == _listed(new)",
        "return True",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-one-exchange-for-two",
        "values",
        """return [place.rstrip("/")]""",
        "return [place]",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-repeated-numbers-for-others",
        "values",
        "    while len(found) > 1 and found[-1] == found[-2]:\n",
        "    while False:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-wants-the-beginning-again",
        "changed",
        "            if resumes:\n",
        "            if False:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-takes-a-reset-that-does-something",
        "changed",
        "untold = _BEGINNING | _RESET if begins_elsewhere else _BEGINNING",
        "untold = _BEGINNING | _RESET",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-forgets-where-a-group-without-checkpoint-begins",
        "changed",
        "resumes = _begins(old, new) and checkpoints",
        "resumes = True or checkpoints",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-says-nothing-of-schedules",
        "spans",
        "if not same(name, before.get(name), now.get(name)",
        "if same(name, before.get(name), now.get(name)",
        "test_launch_changed",
    ),
    _launch(
        "lockstep-goes-on-beside-old-snapshots",
        "run",
        "if relaunch.names and is_lockstep(plan):",
        "if False:",
        "test_launch_rewind",
    ),
    _launch(
        "lockstep-overlooks-what-changes-the-last-bits",
        "changed",
        "if free and last_part(name) not in _LAST_BITS:",
        "if free:",
        "test_launch_rewind",
    ),
    _launch(
        "snapshots-of-a-finished-group-are-removed",
        "run",
        "if not finished[i].reached",
        "if True",
        "test_launch_rewind",
    ),
    _launch(
        "snapshots-of-a-groups-past-are-removed",
        "rewind",
        """asked = [f"{group}:{kept[group]}" for group in groups]""",
        """asked = [f"{group}:{min(kept.values())}" for group in groups]""",
        "test_launch_rewind",
    ),
    _launch(
        "lockstep-takes-an-interval-that-nobody-has-published",
        "rewind",
        "(update % interval == 0 and len(set(kept.values())) == 1)",
        "True",
        "test_launch_rewind",
    ),
    Fault(
        "the-snapshot-of-the-start-stays",
        "fairseq_codistill/forget_snapshots.py",
        "exchange.above(group, update - 1)",
        "exchange.above(group, update)",
        ("test_launch_rewind",),
    ),
    _launch(
        "a-finished-group-takes-any-length-for-its-own",
        "length",
        "    return all(_is_no_higher(name, before[name], after[name]) for name in before)",
        "    return True",
        "test_finished",
    ),
    _launch(
        "a-finished-group-trains-for-less-than-it-has",
        "length",
        "if updates is not None and 0 < updates <= ended.update:",
        "if False:",
        "test_finished",
    ),
    _launch(
        "a-length-in-a-composed-file-is-overlooked",
        "length",
        "return then.get(_COMPOSED) == now.get(_COMPOSED)",
        "return True",
        "test_finished",
    ),
    _launch(
        "the-mark-of-another-group-is-taken",
        "finished",
        """        if (mark.get("run_id"), mark.get("nonce")) != (self._run_id, self._nonce):
            return False
""",
        "",
        "test_finished",
    ),
    _launch(
        "relaunch-compares-before-anything-is-trained",
        "changed",
        "    if not trained:\n",
        "    if False:\n",
        "test_launch_changed",
    ),
    _launch(
        "relaunch-wants-the-options-of-an-older-record",
        "changed",
        ' if "options" in record else now.flags',
        "",
        "test_launch_changed",
    ),
    # Who lives.
    _exchange(
        "a-heartbeat-that-stands-still-lives",
        "presence",
        "if after is not None and after != before:",
        "if after is not None:",
        "test_presence",
    ),
    _exchange(
        "liveness-by-the-time-told",
        "presence",
        "    if not before.running:\n",
        "    if not before.running or not abs(time.time() - before.time) < 60:\n",
        "test_presence",
    ),
    _codistillation(
        "groups-that-died-count",
        "membership",
        "(alive.finished or lives(self._exchange.store, other, alive))",
        "True",
    ),
    Fault(
        "status-compares-other-clocks",
        "fairseq_codistill/status/survey.py",
        "    ours = alive.clock is not None and alive.clock == clock_of_this_host()\n",
        "    ours = True\n",
        ("test_status",),
    ),
    Fault(
        "status-does-not-watch",
        "fairseq_codistill/status/survey.py",
        "        self._watch([one for one in seen if self._is_doubtful(one.group)])\n",
        "",
        ("test_status",),
    ),
    # A group that starts over.
    _codistillation(
        "a-former-life-stays",
        "membership",
        "        self._clear = self._lockstep\n",
        "        self._clear = True\n",
    ),
    _codistillation(
        "a-former-life-goes-in-lockstep",
        "membership",
        "        self._clear = self._lockstep\n",
        "        self._clear = False\n",
    ),
    _codistillation(
        "a-former-life-is-removed-too-late",
        "membership",
        "            self._clear_the_way()\n            ready()\n",
        "            ready()\n",
    ),
    _exchange(
        "a-former-life-takes-the-start-with-it",
        "exchange",
        "for u in self.candidates(group) if u > update)",
        "for u in self.candidates(group) if u >= update)",
        "test_codistillation",
    ),
    _exchange(
        "a-former-life-goes-newest-first",
        "exchange",
        "for update in sorted(updates):",
        "for update in sorted(updates, reverse=True):",
        "test_exchange",
    ),
    Fault(
        "an-export-forgets-what-torch-may-read",
        "fairseq_codistill/plain.py",
        "        torch.serialization.add_safe_globals(before)\n",
        "        pass\n",
        ("test_plain",),
    ),
    _exchange(
        "peers-stay-with-what-was-removed",
        "reader",
        "        if above not in updates:\n",
        "        if False:\n",
        "test_codistillation",
    ),
    _codistillation(
        "the-replay-may-differ",
        "membership",
        "exact = self._published == self._start or ",
        "exact = self._published == self._start and ",
    ),
    _codistillation(
        "the-replay-must-match-on-a-gpu",
        "membership",
        "        if self._publisher.agreed or not exact:\n",
        "        if self._publisher.agreed:\n",
    ),
    _codistillation(
        "nothing-is-said-of-random-peers",
        "membership",
        "                self._tell_of_random_peers()\n",
        "                pass\n",
    ),
    # What export writes is what was trained, and what it reads is not run.
    _export(
        "settings-are-not-looked-at",
        "guard",
        'if "${" in value or (name.endswith(_EVALUATED) and not _is_arithmetic(value)):',
        "if False:",
        "test_export_refusals",
    ),
    _export(
        "a-call-is-arithmetic",
        "guard",
        "ast.UnaryOp, ast.USub),",
        "ast.UnaryOp, ast.USub, ast.Call, ast.Attribute, ast.Name),",
        "test_export_refusals",
    ),
    _export(
        "bytes-are-no-code",
        "guard",
        "(str, bool, int, float, dict)",
        "(str, bytes, bool, int, float, dict)",
        "test_export_refusals",
    ),
    _export(
        "any-model-is-built",
        "guard",
        "if model not in KNOWN_MODELS:",
        "if model is None:",
        "test_export_refusals",
    ),
    _export(
        "what-came-meanwhile-is-replaced",
        "run",
        "        # Another process may have written it meanwhile.\n"
        "        _must_be_absent(options.new)\n",
        "",
        "test_export_refusals",
    ),
    _export(
        "a-refusal-leaves-directories",
        "run",
        "    with _workspace(options.new) as directory:\n",
        "    options.new.parent.mkdir(parents=True, exist_ok=True)\n"
        "    with _workspace(options.new) as directory:\n",
        "test_export_refusals",
    ),
    _export(
        "a-full-disk-is-torch-s-error",
        "verify",
        "        if isinstance(error.__context__, OSError):\n",
        "        if False:\n",
        "test_export_refusals",
    ),
    _export(
        "outputs-are-not-compared",
        "verify",
        "return None if said == outputs.SAME else",
        "return None if said in (outputs.SAME, outputs.OTHER) else",
        "test_export_architectures",
    ),
    _export(
        "ctranslate2-is-believed",
        "to_ctranslate2",
        "if not outputs.alike(_log_probabilities(trained), theirs, _TOLERANCE):",
        "if len(theirs) != len(trained.sentences):",
        "test_export_architectures",
    ),
    _export(
        "a-users-model-is-stock",
        "architecture",
        "    if not _is_of_fairseq(model):\n",
        "    if False:\n",
        "test_export_architectures",
    ),
    _export(
        "a-users-architecture-keeps-its-name",
        "architecture",
        "    return (named or stock)[0]\n",
        "    return name\n",
        "test_export_architectures",
    ),
    _export(
        "a-users-task-is-stock",
        "checkpoint",
        '    if any(str(key).startswith("codistill_") for key in task):\n',
        "    if False:\n",
        "test_export_architectures",
    ),
]


def copy_of(root: Path, to: Path) -> None:
    """Copy what git knows of a repository, or would know if it were added."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, to / name)


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run test files in a copy; returns pytest's exit status and the first test that failed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CODISTILL_")}
    # The copy wins over an installed package; and a file that was changed within a second, and to
    # the same length, has no valid byte code.
    env |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    where = "import fairseq_codistill; print(fairseq_codistill.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=copy, env=env, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(copy), f"{found.stdout} is not of the copy"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout", str(TEST_SECONDS)]
    command += ["-p", "no:cacheprovider", *(f"tests/{name}.py" for name in tests)]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.M)
    return done.returncode, failed[1] if failed else done.stdout[-2000:] + done.stderr[-2000:]


def outcome(fault: Fault | None, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a fresh copy with a fault in it, or without any."""
    with tempfile.TemporaryDirectory(prefix="deliberate-fault-") as folder:
        copy = Path(folder).resolve()
        copy_of(ROOT, copy)
        if fault is not None:
            path = copy / fault.file
            path.write_text(fault.applied(path.read_text()))
        return run_tests(copy, tests)


def main(arguments: list[str]) -> int:
    """Make the faults asked for, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].split(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; all if none is named")
    parser.add_argument("--jobs", type=int, default=1, help="how many to try side by side")
    args = parser.parse_args(arguments)
    unknown = set(args.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not args.names or fault.name in args.names]
    with ThreadPoolExecutor(args.jobs) as pool:
        # What fails without a fault says nothing about one.
        files = sorted({name for fault in faults for name in fault.tests})
        for name, (status, said) in zip(
            files, pool.map(lambda name: outcome(None, (name,)), files), strict=True
        ):
            if status != 0:
                print(f"tests/{name}.py fails without any fault: {said}")
                return 2
        survived = 0
        results = pool.map(lambda fault: outcome(fault, fault.tests), faults)
        for fault, (status, said) in zip(faults, results, strict=True):
            if status == 0:
                survived += 1
                print(f"SURVIVED  {fault.name} ({', '.join(fault.tests)})", flush=True)
            elif status == 1:
                print(f"killed    {fault.name} by {said}", flush=True)
            else:
                print(f"pytest could not run for {fault.name} (status {status}):\n{said}")
                return 2
    print(f"{len(faults) - survived} of {len(faults)} faults killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
