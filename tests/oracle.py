"""What a sound snapshot is, said a second time: the fuzzer's judge, which shares no code of ours.

Written from the description of the format with json, struct, hashlib, hmac and numpy alone.
"""

import hashlib
import hmac
import json
import math
import re
import struct

import numpy as np

DIGITS = set("0123456789abcdef")
SIZES = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8}
WIRE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "F32"}
# Exponent bits: all of them set is an infinity or no number.
EXPONENT = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
FIELDS = set(
    "run_id group seed update epoch dtype bytes sha256 shapes aliases vocabulary model time "
    "format".split()
)


class Unsound(Exception):
    """The reason."""


def need(condition, reason):
    if not condition:
        raise Unsound(reason)


def strict(data):
    """Parse JSON by rules of its own: remember every pair, then look for what must not be."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=lambda pairs: ("object", pairs))
    except (ValueError, RecursionError) as error:
        raise Unsound(f"JSON: {error}") from None
    return settle(value)


def settle(root):
    """Turn pairs into dicts without recursion; no key twice, no number that is not finite."""
    holder = [root]
    todo = [(holder, 0)]
    while todo:
        container, key = todo.pop()
        value = container[key]
        if isinstance(value, tuple):
            keys = [k for k, _ in value[1]]
            need(len(set(keys)) == len(keys), "a key twice")
            value = container[key] = dict(value[1])
            todo += [(value, k) for k in value]
        elif isinstance(value, list):
            todo += [(value, i) for i in range(len(value))]
        elif isinstance(value, float):
            need(math.isfinite(value), "not finite")
    return holder[0]


def text(value, longest, shortest=1):
    need(isinstance(value, str), "no text")
    need(shortest <= len(value) <= longest, "length")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unsound("surrogate") from None


def whole(value, low, high):
    need(isinstance(value, int) and not isinstance(value, bool), "no integer")
    need(low <= value <= high, "range")


def digest(value):
    need(isinstance(value, str) and len(value) == 64 and set(value) <= DIGITS, "digest")


def plain(value, levels):
    if isinstance(value, dict):
        need(levels > 0, "levels")
        for key, part in value.items():
            text(key, 4096, 0)
            plain(part, levels - 1)
    elif isinstance(value, list):
        need(levels > 0, "levels")
        for part in value:
            plain(part, levels - 1)
    elif isinstance(value, str):
        text(value, 4096, 0)
    elif isinstance(value, int):
        need(-(2**63) < value < 2**63, "integer")


def manifest(data, group, update, run_id, vocabulary, seed, key, source_vocabulary):
    need(len(data) <= 1024 * 1024, "manifest size")
    fields = strict(data)
    need(isinstance(fields, dict), "no object")
    need("format" in fields, "format")
    whole(fields["format"], 1, 2)
    may = {"hmac", "source_vocabulary"} if fields["format"] == 2 else {"hmac"}
    need(fields.keys() - may == FIELDS, "fields")
    text(fields["run_id"], 200)
    whole(fields["group"], 0, 999_999)
    whole(fields["seed"], -(2**63), 2**64 - 1)
    whole(fields["update"], 0, 9_999_999_999)
    whole(fields["epoch"], 1, 2**31)
    need(isinstance(fields["dtype"], str) and fields["dtype"] in WIRE, "dtype")
    whole(fields["bytes"], 1, 2**60)
    digest(fields["sha256"])
    digest(fields["shapes"])
    need(isinstance(fields["aliases"], dict), "aliases")
    for pair in fields["aliases"].items():
        for name in pair:
            text(name, 1000)
    text(fields["vocabulary"], 64)
    if "source_vocabulary" in fields:
        text(fields["source_vocabulary"], 64)
    need(isinstance(fields["model"], dict), "model")
    plain(fields["model"], 6)
    need(type(fields["time"]) in (int, float) and 0 < fields["time"] < 2**40, "time")
    if "hmac" in fields:
        digest(fields["hmac"])
    need(fields["run_id"] == run_id, "run")
    need((fields["group"], fields["update"]) == (group, update), "place")
    if key is not None:
        need("hmac" in fields, "unsigned")
        rest = {name: value for name, value in fields.items() if name != "hmac"}
        content = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")
        need(fields["hmac"] == hmac.new(key, content, "sha256").hexdigest(), "signature")
    need(fields["vocabulary"] == vocabulary, "vocabulary")
    need(fields.get("source_vocabulary", source_vocabulary) == source_vocabulary, "source")
    need(fields["seed"] != seed, "seed")
    return fields


def tensors(data, fields, largest):
    """Give names -> (dtype, shape, bytes) of a tensor file, aliases among them."""
    need(fields["bytes"] * (4 if fields["dtype"] == "int8" else 1) <= largest, "largest")
    need(len(data) == fields["bytes"], "size")
    need(hashlib.sha256(data).hexdigest() == fields["sha256"], "sha256")
    need(len(data) >= 8, "no header")
    (length,) = struct.unpack("<Q", data[:8])
    need(length <= 4 * 1024 * 1024 and 8 + length <= len(data), "header length")
    need(data[8:9] == b"{", "header begins")
    # To Python's json this is the integer 0, to others no size.
    need(not re.search(rb"[\[ ,:]-0[\], ]", data[8 : 8 + length]), "-0")
    header = strict(data[8 : 8 + length])
    need(isinstance(header, dict) and header, "header")
    payload = data[8 + length :]
    found, spans = {}, []
    for name, entry in header.items():
        need(name != "__metadata__", "metadata")
        text(name, 1000)
        need(isinstance(entry, dict), "entry")
        need(entry.keys() == {"dtype", "shape", "data_offsets"}, "entry fields")
        kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        need(isinstance(kind, str) and kind in SIZES, "tensor dtype")
        need(kind not in EXPONENT or kind == WIRE[fields["dtype"]], "another float")
        need(isinstance(shape, list) and len(shape) <= 16, "shape")
        need(isinstance(span, list) and len(span) == 2, "span")
        for number in (*shape, *span):
            whole(number, 0, 2**60)
        need(span[1] - span[0] == math.prod(shape) * SIZES[kind], "span's length")
        # Empty, and yet larger than anything.
        need(math.prod(size or 1 for size in shape) <= 2**60, "overflow")
        content = payload[span[0] : span[1]]
        need(len(content) == span[1] - span[0], "outside")
        if kind in EXPONENT:
            numbers, bits = EXPONENT[kind]
            need(not np.any(np.frombuffer(content, numbers) & bits == bits), "not finite")
        if kind == "BOOL":
            need(not np.any(np.frombuffer(content, "u1") > 1), "no bool")
        found[name] = (kind, shape, content)
        spans.append(tuple(span))
    end = 0
    for first, last in sorted(spans):
        need(first == end, "gap or overlap")
        end = last
    need(end == len(payload), "not covered")
    if fields["dtype"] == "int8":
        found = from_rows(found)
    names = dict(found)
    for alias, name in fields["aliases"].items():
        need(name in found and alias not in found, "alias")
        names[alias] = found[name]
    need(shapes_digest({n: shape for n, (_, shape, _) in names.items()}) == fields["shapes"], "shp")
    return names


def from_rows(found):
    """Undo int8: each row of a matrix times its scale."""
    tensors = {name: found[name] for name in found if not name.endswith(":scale")}
    for name, (kind, shape, content) in found.items():
        if name.endswith(":scale"):
            matrix, of, numbers = found.get(name[: -len(":scale")], ("", [], b""))
            need(kind == "F32" and matrix == "I8" and len(of) > 1 and shape == of[:1], "scales")
            scales = np.frombuffer(content, "<f4").reshape(-1, *[1] * (len(of) - 1))
            with np.errstate(over="ignore"):
                product = np.frombuffer(numbers, "i1").reshape(of).astype("<f4") * scales
            need(np.isfinite(product).all(), "not finite")
            tensors[name[: -len(":scale")]] = ("F32", of, product.tobytes())
    return tensors


def shapes_digest(shapes):
    lines = json.dumps([[name, shapes[name]] for name in sorted(shapes)])
    return hashlib.sha256(lines.encode()).hexdigest()
