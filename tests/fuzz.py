"""Mutated snapshots against the reader: python tests/fuzz.py --cases 100000 [--seed S]

Each case puts a manifest and a tensor file into a store and reads them.  What is accepted must be
sound, and what is sound must be accepted, by the judgement of ``oracle``; a rejection is one of
the exchange's errors with a reason in one line; nothing else is raised, hangs, or takes memory out
of proportion to its files; and no pickle is run.  Two kinds of cases take turns:

- structured: hypothesis edits fields, JSON, headers, tensors and signatures, and mostly puts
  sizes and digests right again, so that the edit gets past them;
- bytes: bits flipped, bytes cut, inserted, repeated and spliced in either file.
"""

import argparse
import collections
import dataclasses
import faulthandler
import hashlib
import hmac
import io
import json
import logging
import math
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import hypothesis
import oracle
import torch
from hypothesis import strategies as st

from fairseq_codistill.exchange import (
    WIRE_DTYPES,
    Draft,
    Exchange,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
    copy_out,
)

GROUP, UPDATE, RUN, SEED = 1, 10, "run", 1
VOCABULARY = hashlib.sha256(b"words").hexdigest()
SOURCE = hashlib.sha256(b"words of the source").hexdigest()
KEY = b"a key that is long enough"
LARGEST = 100_000

# Generous to a busy machine; a case takes a millisecond.
CASE_SECONDS = 20
SLACK_BYTES = 4 * 2**20
RESERVE_BYTES = 2**30
TIMES_ITS_SIZE = 64
CLEAR_REFS = Path("/proc/self/clear_refs")


class Defect(Exception):
    """The reader did what it must not do."""


class Hang(BaseException):
    """Raised by the clock; no part of the reader may swallow it."""


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return (os.mkdir, (str(self.path),))


@dataclasses.dataclass
class Case:
    """What is put into the store (None: nothing), and whether the reader has a key."""

    manifest: bytes | None
    data: bytes | None
    keyed: bool = False


# Sound snapshots to start from.


def states():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 3, generator=generator)
    yield {"embedding": weight, "output": weight, "bias": torch.randn(4, generator=generator)}
    yield {"w": torch.randn(2, 5, generator=generator), "steps": torch.tensor(7)}
    yield {
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "narrow": torch.zeros(3, 0),
        "small": torch.arange(5, dtype=torch.uint8),
        "ids": torch.arange(3, dtype=torch.int32),
        "w": torch.randn(2, 1, 3, generator=generator),
    }


def sound_snapshots():
    store = Store("memory://fuzz-sound")
    for key in (None, KEY):
        for dtype in WIRE_DTYPES:
            for number, state in enumerate(states()):
                tensors, aliases = copy_out(state, WIRE_DTYPES[dtype])
                update = UPDATE + number
                exchange = Exchange(store, f"{dtype} {key}", key)
                exchange.publish(
                    Draft(
                        group=GROUP,
                        seed=1000004,
                        update=update,
                        epoch=2,
                        dtype=dtype,
                        vocabulary=VOCABULARY,
                        source_vocabulary=SOURCE if number else None,
                        model={"arch": "transformer", "layers": [1, {"a": None}], "dropout": 0.1},
                        tensors=tensors,
                        aliases=aliases,
                    )
                )
                stem = f"group-{GROUP}/{update:010d}"
                fields = json.loads(store.read(f"{stem}.json", 2**20))
                fields |= {"run_id": RUN, "update": UPDATE}
                if number == 2:
                    # As earlier versions wrote it.
                    fields |= {"format": 1}
                    del fields["source_vocabulary"]
                yield Work(fields, store.read(f"{stem}.safetensors", 2**20), key is not None)


class Work:
    """A snapshot in parts that can be edited one by one."""

    def __init__(self, fields, data, keyed):
        self.fields = fields
        (length,) = struct.unpack("<Q", data[:8])
        self.header = list(json.loads(data[8 : 8 + length]).items())
        self.payload = data[8 + length :]
        self.keyed = keyed
        # The last touches: functions of bytes.
        self.on_header = []
        self.on_data = []
        self.on_manifest = []
        # What is put right again after the edits.
        self.mend = {"size", "shapes", "signature"}

    def copy(self):
        other = object.__new__(Work)
        other.__dict__ = {
            "fields": json.loads(json.dumps(self.fields)),
            "header": json.loads(json.dumps(self.header)),
            "payload": self.payload,
            "keyed": self.keyed,
            "on_header": [],
            "on_data": [],
            "on_manifest": [],
            "mend": set(self.mend),
        }
        return other

    def case(self):
        header = as_object(self.header)
        for touch in self.on_header:
            header = touch(header)
        data = struct.pack("<Q", len(header)) + header + self.payload
        for touch in self.on_data:
            data = touch(data)
        fields = self.fields
        if "shapes" in self.mend:
            self._mend_shapes()
        if "size" in self.mend:
            fields["bytes"] = len(data)
            fields["sha256"] = hashlib.sha256(data).hexdigest()
        if self.keyed and "signature" in self.mend:
            rest = {name: value for name, value in fields.items() if name != "hmac"}
            content = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
            fields["hmac"] = hmac.new(KEY, content, "sha256").hexdigest()
        manifest = json.dumps(fields).encode()
        for touch in self.on_manifest:
            manifest = touch(manifest)
        return Case(manifest, data, self.keyed)

    def _mend_shapes(self):
        try:
            scale = ":scale" if self.fields["dtype"] == "int8" else "\0"
            shapes = {name: e["shape"] for name, e in self.header if not name.endswith(scale)}
            aliases = self.fields["aliases"]
            shapes |= {alias: shapes[name] for alias, name in aliases.items()}
            self.fields["shapes"] = oracle.shapes_digest(shapes)
        except (KeyError, TypeError, ValueError, AttributeError):
            return  # nothing that has shapes any more


def as_object(pairs):
    """JSON of pairs, of which two may have one key."""
    return ("{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}").encode()


# Edits, chosen by hypothesis.  Each is a function of a Work.

NASTY = [
    *[None, True, False, 0, 1, -1, 2, 9, 10, 11, 2**31, 2**31 + 1, 2**60, 2**63 - 1, 2**63, 2**64],
    *[10**10, 9_999_999_999, 10**400, -(2**63), 0.0, -0.0, 0.5, 1.0, 10.0, 1e308, 2.0**40],
    *[float("nan"), float("inf"), float("-inf"), "", "0", "a", "\ud800", "\x00", "\n", "a" * 201],
    *["../../etc/passwd", "/etc/passwd", "float32", "float64", "bfloat16", "F32", "F64", "BOOL"],
    *["C64", "F8_E4M3", "F8_E8M0", "F4", "U64", "I64", "U8", "BF16", "F16", "run", "x" * 65],
    *["0" * 64, "F" * 64, "g" * 64, "0" * 63 + "\n", "a" * 1001, "embedding", "w", "output"],
    *[[], {}, [[]], [0], [1], [1, 1], [0, 2**60], [2**32, 2**32], [2**40, 0, 2**40], [1] * 17],
    *[[-1], [1.0], ["1"], [None], [True, 3], {"w": "w"}, {"x": "w"}, {"x": "y"}, {"": "w"}],
    *[{"output": "w"}, {"x": "bias", "y": "bias"}, {"a": {"b": {"c": {"d": {"e": {}}}}}}],
    *[
        {"a": {"b": {"c": {"d": {"e": {"f": []}}}}}},
        [[[[[[[[]]]]]]]],
        {"a": 2**63},
        {"a": "\udfff"},
    ],
]
junk = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3)
    ),
    max_leaves=4,
)
place = st.integers(0, 1000)
FIELDS = [*sorted(oracle.FIELDS), "source_vocabulary", "hmac", "extra", ""]


@st.composite
def field_set(draw):
    name, value = draw(st.sampled_from(FIELDS)), draw(junk)

    def edit(work):
        work.fields[name] = value
        # Else it would be put right again.
        work.mend -= {"size"} if name in ("bytes", "sha256") else set()
        work.mend -= {"shapes"} if name == "shapes" else set()
        work.mend -= {"signature"} if name == "hmac" else set()

    return edit


PLAUSIBLE = [
    *[{"group": 2}, {"update": 11}, {"epoch": 3}, {"seed": 5}, {"seed": SEED}, {"time": 5}],
    *[{"format": 1}, {"format": 2}, {"format": 3}, {"source_vocabulary": SOURCE}],
    *[{"source_vocabulary": "0" * 64}, {"source_vocabulary": None}],
    *[{"run_id": "other"}, {"vocabulary": "0" * 64}, {"aliases": {}}, {"dtype": "float16"}],
    *[{"model": {"a": "\udfff"}}, {"model": {"\ud800": 1}}, {"model": {}}, {"model": {"": -1.5}}],
]


@st.composite
def field_plausible(draw):
    """Set a field to what might be true, were it not for something else."""
    fields = draw(st.sampled_from(PLAUSIBLE))
    return lambda work: work.fields.update(json.loads(json.dumps(fields)))


@st.composite
def field_gone(draw):
    name = draw(st.sampled_from(FIELDS))
    return lambda work: work.fields.pop(name, None)


@st.composite
def not_mended(draw):
    what = draw(st.sampled_from(["size", "shapes", "signature"]))
    return lambda work: work.mend.discard(what)


RAW = [
    lambda text: text.replace(b"0.1", b"1e999", 1),
    lambda text: text.replace(b"0.1", b"NaN", 1),
    lambda text: text.replace(b"0.1", b"-1e-999", 1),
    lambda text: text[:-1] + b',"group":1}',
    lambda text: b'{"group":1,' + text[1:],
    lambda text: text[:-1] + b',"x":NaN}',
    lambda text: text.replace(b":2", b":1e999", 1),
    lambda text: text.replace(b"[", b"[" * 500, 1),
    lambda text: text.replace(b"1", b"-Infinity", 1),
    lambda text: text.replace(b"1", b"01", 1),
    lambda text: text.replace(b"1", b"1" * 5000, 1),
    lambda text: text.replace(b"1", b"1.0", 1),
    lambda text: text.replace(b"0", b"-0", 1),
    lambda text: text.replace(b"a", b"\\u0061", 1),
    lambda text: text.replace(b"a", b"\\ud83d\\ude00", 1),
    lambda text: text.replace(b"a", b"\xff", 1),
    lambda text: text.replace(b"a", b"\x00", 1),
    lambda text: text.replace(b"a", "ä".encode(), 1),
    lambda text: text.replace(b",", b" ,\n\t", 3),
    lambda text: text.replace(b",", b",,", 1),
    lambda text: text.decode("utf-8", "replace").encode("utf-16"),
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: b" " + text + b" \n",
    lambda text: text + b"\x00",
    lambda text: text + text,
    lambda text: b"[" + text + b"]",
    lambda text: b"[" * 100_000,
    lambda text: b'{"a":' * 20_000,
    lambda text: b"{}",
    lambda text: b"",
    lambda text: b"null",
    lambda text: text.replace(b"}", b"," + b'"k":0,' * 3 + b'"z":0}', 1),
]


@st.composite
def raw_manifest(draw):
    touch = draw(st.sampled_from(RAW))
    return lambda work: work.on_manifest.append(touch)


@st.composite
def raw_header(draw):
    touch = draw(st.sampled_from(RAW))
    return lambda work: work.on_header.append(touch)


@st.composite
def entry_set(draw):
    which, value = draw(place), draw(junk)
    name = draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))

    def edit(work):
        if not work.header:
            return
        entry = work.header[which % len(work.header)][1]
        if isinstance(entry, dict):
            entry[name] = value

    return edit


@st.composite
def entry_number(draw):
    """Change one number of a shape or of offsets a little: all else stays plausible."""
    which, where = draw(place), draw(place)
    name, by = draw(st.sampled_from(["shape", "data_offsets"])), draw(st.integers(-3, 3))

    def edit(work):
        if not work.header:
            return
        numbers = work.header[which % len(work.header)][1]
        numbers = numbers.get(name) if isinstance(numbers, dict) else None
        if isinstance(numbers, list) and numbers and type(numbers[where % len(numbers)]) is int:
            numbers[where % len(numbers)] += by

    return edit


@st.composite
def entry_moved(draw):
    """Rename, repeat, drop, swap or reshape an entry."""
    which, how = draw(place), draw(st.integers(0, 7))
    name = draw(
        st.sampled_from(
            ["", "w", "w:scale", "__metadata__", "bias", "a\nb", "\ud800", "ö", "x" * 1001]
        )
    )

    def edit(work):
        if not work.header:
            return
        pair = work.header[which % len(work.header)]
        other = work.header[(which + 1) % len(work.header)]
        shape = pair[1].get("shape") if isinstance(pair[1], dict) else None
        if how == 0:
            pair[0] = name
        elif how == 1:
            work.header.append(json.loads(json.dumps(pair)))
        elif how == 2:
            work.header.remove(pair)
        elif how == 3:
            pair[1], other[1] = other[1], pair[1]
        elif how == 4 and isinstance(shape, list):
            shape.reverse()
        elif how == 5 and isinstance(shape, list):
            shape.append(1)
        elif how == 6:
            work.header.append([name, {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]}])
        elif how == 7 and isinstance(pair[1], dict):
            pair[1] = list(pair[1].values())

    return edit


@st.composite
def entry_new(draw):
    """Add a whole tensor, of some dtype and size, or metadata as safetensors has it."""
    dtype = draw(st.sampled_from([*oracle.SIZES, "F64", "C64", "F8_E5M2"]))
    shape = draw(st.sampled_from([[], [0], [2], [3, 1], [1] * 16, [1] * 17, [2, 50_000]]))
    name = draw(st.sampled_from(["new", "w:scale"]))
    metadata = draw(st.integers(0, 3)) == 0

    def edit(work):
        if metadata:
            work.header.append(["__metadata__", {"format": "pt"}])
            return
        size = math.prod(shape) * (oracle.SIZES.get(dtype) or int(dtype[1:].split("_")[0]) // 8)
        span = [len(work.payload), len(work.payload) + size]
        work.header.append([name, {"dtype": dtype, "shape": shape, "data_offsets": span}])
        work.payload += bytes(size)

    return edit


@st.composite
def payload_number(draw):
    """Write special bit patterns: infinities, no numbers, bools that are none."""
    where = draw(place)
    pattern = draw(
        st.sampled_from([b"\x00\x00\x80\x7f", b"\x80\x7f", b"\x00\x7c", b"\x02", b"\xff"])
    )
    pattern *= draw(st.integers(1, 3))

    def edit(work):
        start = where % (len(work.payload) + 1)
        work.payload = work.payload[:start] + pattern + work.payload[start + len(pattern) :]

    return edit


@st.composite
def payload_length(draw):
    by = draw(st.integers(-20, 20))

    def edit(work):
        work.payload = (
            work.payload + bytes(by) if by > 0 else work.payload[: len(work.payload) + by]
        )

    return edit


@st.composite
def header_length(draw):
    length = draw(st.sampled_from([0, 1, 7, 8, 100, 2**22, 2**22 + 1, 10**8, 2**63, 2**64 - 1]))
    return lambda work: work.on_data.append(lambda data: struct.pack("<Q", length) + data[8:])


@st.composite
def other_key(draw):
    key = draw(st.binary(max_size=30))

    def edit(work):
        work.mend.discard("signature")
        rest = {name: value for name, value in work.fields.items() if name != "hmac"}
        content = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        work.fields["hmac"] = hmac.new(key, content, "sha256").hexdigest()

    return edit


@st.composite
def a_pickle(draw):
    which = draw(st.integers(0, 1000))
    return lambda work: work.on_data.append(lambda data: PICKLES[which % len(PICKLES)])


@st.composite
def large(draw):
    """Larger than the limits, or with little content that is much to Python."""
    which = draw(st.integers(0, 5))

    def edit(work):
        if which == 0:
            work.on_manifest.append(lambda text: text + b" " * 2**20)
        elif which == 1:
            work.fields["model"] = {"a": "x" * 2000}
        elif which == 2:
            work.fields["model"] = {"a": [[]] * 10_000}
        elif which == 3:
            work.payload += bytes(LARGEST)
        elif which == 4:
            work.header.append(["x", {"dtype": "F32", "shape": [[]] * 10_000}])
        else:
            work.header.append(["x", [[]] * 10_000])

    return edit


EDITS = st.one_of(
    *[field_set(), field_set(), field_gone(), not_mended(), raw_manifest(), raw_header()],
    *[entry_set(), entry_set(), entry_number(), entry_moved(), payload_number(), payload_length()],
    *[header_length(), other_key(), a_pickle(), field_plausible(), entry_new()],
    # One in three hundred or so: they are slow.
    st.integers(0, 15).flatmap(lambda n: large() if n == 0 else entry_number()),
)
STRUCTURED = st.tuples(place, st.lists(EDITS, min_size=1, max_size=3))
PICKLES: list[bytes] = []


def pickles(trap):
    """Pickles of every kind that somebody might load, each of which would leave ``trap``."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(Trap(trap), protocol)
    for legacy in (True, False):
        stream = io.BytesIO()
        torch.save({"w": Trap(trap)}, stream, _use_new_zipfile_serialization=not legacy)
        yield stream.getvalue()
    # Behind, and inside, of what looks like a tensor file.
    payload = pickle.dumps(Trap(trap))
    header = json.dumps({"w": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}).encode()
    yield struct.pack("<Q", len(header)) + header + payload
    yield struct.pack("<Q", len(payload)) + payload


# Bytes.


def mutated(rng, data, others):
    """Give ``data`` after one to three changes of its bytes."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randint(0, len(data)) for _ in range(2))
        how = rng.randrange(7)
        if how == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        elif how == 2:
            data = data[:at] + data[min(end, at + rng.choice([1, 2, 8, 10**6])) :]
        elif how == 3:
            other = rng.choice(others)
            start = rng.randint(0, len(other))
            data = data[:at] + other[start : start + rng.randint(1, 64)] + data[end:]
        elif how == 4:
            data = data[:at] + data[at:end] * rng.randint(2, 4) + data[end:]
        elif how == 5 and data:
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice(b'0123456789"{}[],:-.eE').to_bytes() + data[at + 1 :]
        else:
            data = data[:at]
    return data


def bytes_case(rng, sound):
    work = rng.choice(sound).copy()
    case = work.case()
    what = rng.randrange(10)
    if what < 3:
        case.manifest = mutated(rng, case.manifest, [s.case().manifest for s in sound[:2]])
    elif what < 9:
        # All of the file, or only what follows the header.
        start = rng.choice([0, len(case.data) - len(work.payload)])
        others = [s.copy().case().data for s in rng.sample(sound, 2)]
        case.data = case.data[:start] + mutated(rng, case.data[start:], others)
        if what > 3:
            work.on_data.append(lambda data, mutated=case.data: mutated)
            case.manifest = work.case().manifest
    elif rng.random() < 0.5:
        case.manifest = None
    else:
        case.data = None
    return case


# Judging.


class OneLine(logging.Handler):
    """Makes sure that every line logged is one line that any file can hold."""

    def emit(self, record):
        line = record.getMessage()
        if "\n" in line or not line.isprintable() or len(line.encode()) > 4000:
            raise Defect(f"logged {line!r}")


class Judge:
    """Runs cases, and counts."""

    def __init__(self, uri):
        self.store = Store(uri)
        self.cases = 0
        self.outcomes = collections.Counter()
        self.reasons = collections.Counter()
        self.largest_growth = 0
        self.largest_python = 0.0
        log = logging.getLogger("fairseq_codistill.exchange.reader")
        log.handlers, log.propagate = [OneLine()], False

    def run(self, case):
        stem = f"group-{GROUP}/{UPDATE:010d}"
        for name, content in (("json", case.manifest), ("safetensors", case.data)):
            if content is None:
                self.store.delete(f"{stem}.{name}")
            else:
                self.store.write(f"{stem}.{name}", content)
        key = KEY if case.keyed else None
        exchange = Exchange(self.store, RUN, key)
        reader = Reader(exchange, SEED, VOCABULARY, LARGEST, source_vocabulary=SOURCE)
        truth, why = self._truth(case, key)
        size = sum(len(content) for content in (case.manifest, case.data) if content)
        traced = self.cases % 20 == 0
        self.cases += 1
        if traced:
            tracemalloc.start()
        before = peak_memory(reset=True)
        signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
        found, reason = None, ""
        try:
            found = reader.read(GROUP, UPDATE)
            outcome = "accepted"
        except (SnapshotRejected, SnapshotMissing) as error:
            outcome, reason = type(error).__name__, str(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        growth = peak_memory() - before
        if traced:
            python = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.largest_python = max(self.largest_python, python / max(size, 2**16))
            if python > TIMES_ITS_SIZE * size + SLACK_BYTES:
                raise Defect(f"took {python} bytes of Python for files of {size}")
        self.largest_growth = max(self.largest_growth, growth)
        if growth > TIMES_ITS_SIZE * size + SLACK_BYTES:
            raise Defect(f"took {growth} bytes of memory for files of {size}")
        self.outcomes[outcome] += 1
        if found is None:
            self._judge_reason(reason)
            if truth is not None:
                raise Defect(f"rejected a sound snapshot: {reason}")
        elif truth is None:
            raise Defect(f"accepted what is unsound: {why}")
        else:
            judge_tensors(found, truth)
        return outcome

    def _truth(self, case, key):
        if case.manifest is None or case.data is None:
            return None, "missing"
        try:
            fields = oracle.manifest(
                case.manifest, GROUP, UPDATE, RUN, VOCABULARY, SEED, key, SOURCE
            )
            return oracle.tensors(case.data, fields, LARGEST), ""
        except oracle.Unsound as error:
            return None, str(error)

    def _judge_reason(self, reason):
        if not reason.strip() or not reason.isprintable() or len(reason) > 600:
            raise Defect(f"the reason of a rejection is {reason!r}")
        # Memory that could not be had is no fault of a snapshot: somebody asked for too much.
        if "not enough memory" in reason or "allocat" in reason:
            raise Defect(f"ran out of memory: {reason}")
        kind = re.split(r"[\[{(`\d]| is (?!not)|, the| as |(?<!\w)'", reason)[0].strip()
        self.reasons[kind] += 1


def peak_memory(reset=False):
    """Bytes of this process at their most, or since the last reset where the system can do that."""
    if reset and CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_address_space():
    """Let no case reserve much more memory than the files need, touched or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + RESERVE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}


def judge_tensors(snapshot, truth):
    """Make sure that the reader gives what the oracle sees in the file."""
    if snapshot.tensors.keys() != truth.keys():
        raise Defect("other names")
    for name, (kind, shape, content) in truth.items():
        tensor = snapshot.tensors[name]
        own = str(tensor.dtype).removeprefix("torch.")
        own = KINDS.get(own, own.replace("uint", "U").replace("int", "I"))
        numbers = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if content else b""
        if (own, list(tensor.shape), numbers) != (kind, shape, content):
            raise Defect(f"another tensor {name!r}")


def fuzz(cases, seed, uri="memory://fuzz", share=0.4):
    """Run so many cases and give the judge; ``share`` of them are structured.

    Raises:
        Defect: with the case's number and files, if the reader fails one.
    """
    rng = random.Random(seed)
    judge = Judge(uri)
    sound = list(sound_snapshots())
    for work in sound:
        if judge.run(work.copy().case()) != "accepted":
            raise Defect("a sound snapshot was rejected")

    def ring(signum, frame):
        raise Hang(f"a case took {CASE_SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as folder:
        trap = Path(folder) / "trapped"
        PICKLES[:] = pickles(trap)
        pickle.loads(PICKLES[2])
        if not trap.exists():
            raise Defect("the trap does not work")
        trap.rmdir()

        def checked(case):
            if judge.cases % 100 == 0:
                # For a hang in C, which no signal interrupts.
                faulthandler.dump_traceback_later(10 * CASE_SECONDS, exit=True)
            try:
                judge.run(case)
                if trap.exists():
                    raise Defect("a pickle was run")
            except Exception as error:
                kind = "" if isinstance(error, Defect) else f"{type(error).__name__}: "
                raise Defect(
                    f"case {judge.cases}, seed {seed}: {kind}{error}\nmanifest: "
                    f"{case.manifest!r:.3000}\ntensor file: {case.data!r:.3000}"
                ) from error

        while judge.cases < cases:
            # In short runs: hypothesis remembers all it has tried.
            part = min(2500, cases - judge.cases)
            structured = round(part * share)

            # One seed a run; what it finds must not change what it tries next.
            @hypothesis.seed(rng.getrandbits(64))
            @hypothesis.settings(
                max_examples=structured,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(STRUCTURED)
            def run_structured(drawn):
                which, edits = drawn
                work = sound[which % len(sound)].copy()
                for edit in edits:
                    edit(work)
                checked(work.case())

            if structured:
                run_structured()
            for _ in range(part - structured):
                checked(bytes_case(rng, sound))
        faulthandler.cancel_dump_traceback_later()
    return judge


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="memory://fuzz", help="a URI or a folder, say on tmpfs")
    args = parser.parse_args()
    start = time.monotonic()
    if sys.platform == "linux":
        limit_address_space()
    try:
        judge = fuzz(args.cases, args.seed, args.store)
    except Defect as defect:
        print(defect)
        return 1
    seconds = time.monotonic() - start
    print(f"{judge.cases} cases, seed {args.seed}, in {seconds:.0f} s: no defect")
    for outcome, count in judge.outcomes.most_common():
        print(f"{count:8d} {outcome}")
    print(f"largest growth of memory in a case: {judge.largest_growth / 2**20:.1f} MiB")
    print(f"largest Python memory, times the files' size or 64 KiB: {judge.largest_python:.1f}")
    print("pickles run: 0")
    print("reasons given:")
    for reason, count in judge.reasons.most_common():
        print(f"{count:8d} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
