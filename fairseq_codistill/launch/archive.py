"""The zip archive that ``torch.save`` writes, checked byte by byte.

``zipfile`` is made for archives of any kind: a damaged byte can make it report an unknown feature,
an encoding or a number out of range, and it reads a directory of any size into memory.  Here only
the layout that ``torch.save`` writes is accepted, members stored one after the other without
compression.  Every length is compared with the file before it is used, so that the memory needed
is bounded, and anything else is ``Damaged``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# 500,000 tensors have a directory of about this size.
LARGEST_DIRECTORY = 32 * 1024 * 1024
_CHUNK = 1024 * 1024

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ4x2I4Q")
# Left out (x) are versions, times, and what the directory says again.
_ENTRY = struct.Struct("<4s4x2H4x3I4H2x2I")
_LOCAL = struct.Struct("<4s2x2H16x2H")

# Sizes follow the data (3), names are UTF-8 (11): all that a writer of such archives sets.
_KNOWN_FLAGS = 1 << 3 | 1 << 11
_STORED = 0
_IS_DIRECTORY = 0x10
_IN_EXTRA_32 = 0xFFFFFFFF
_ZIP64_EXTRA = 1


class Damaged(ValueError):
    """The file is not a complete archive of ``torch.save``; the message is the reason."""


@dataclass(frozen=True)
class Member:
    """A file in the archive.

    Attributes:
        name: as the directory has it.
        crc: checksum of its content.
        size: bytes.
        start: where its content begins.
    """

    name: bytes
    crc: int
    size: int
    start: int


def members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Iterate over the members of an archive, in the order of their content.

    Args:
        file: the archive, open for reading.
        size: its bytes.

    Raises:
        Damaged: if its directory, or the header of a member, is not as it should be.
        OSError: if it cannot be read.
    """
    count, start, end = _directory_place(file, size)
    directory = _read(file, start, end - start)
    at = used = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise Damaged("its directory has fewer entries than it says")
        after, header, member = _entry(directory, at)
        at = after
        if not used <= header <= start - _LOCAL.size:
            raise Damaged("a member begins inside of another, or outside of the file")
        used = _content_place(file, header, member, start)
        yield Member(member.name, member.crc, member.size, used - member.size)
    if at != len(directory):
        raise Damaged("its directory has more bytes than its entries")


def content(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """Iterate over the content of a member, in pieces of at most 1 MiB.

    Raises:
        Damaged: after the last piece, if the checksum is wrong.
        OSError: if it cannot be read.
    """
    crc = 0
    for offset in range(0, member.size, _CHUNK):
        piece = _read(file, member.start + offset, min(_CHUNK, member.size - offset))
        crc = zlib.crc32(piece, crc)
        yield piece
    if crc != member.crc:
        raise Damaged("the checksum of a member is wrong")


def _directory_place(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the number of entries of the directory, its first byte and the one after its last."""
    end_at = size - _END.size
    if end_at < 0:
        raise Damaged("it is too short")
    sign, *disks, here, count, length, start, comment = _END.unpack(_read(file, end_at, _END.size))
    if sign != b"PK\5\6" or any(disks) or comment:
        raise Damaged("it has no end of an archive")
    ends = end_at
    locator_at = end_at - _LOCATOR.size
    locator = _read(file, locator_at, _LOCATOR.size) if locator_at >= 0 else b""
    if locator.startswith(b"PK\6\7"):
        _, disk, ends, number = _LOCATOR.unpack(locator)
        if disk or number != 1 or ends != locator_at - _END64.size:
            raise Damaged("its long end is out of place")
        long = _END64.unpack(_read(file, ends, _END64.size))
        sign, own, *disks, here_64, count_64, length_64, start_64 = long
        if sign != b"PK\6\6" or own != _END64.size - 12 or any(disks):
            raise Damaged("its long end is malformed")
        for short, full, most in (
            (here, here_64, 0xFFFF),
            (count, count_64, 0xFFFF),
            (length, length_64, _IN_EXTRA_32),
            (start, start_64, _IN_EXTRA_32),
        ):
            if short != min(full, most):
                raise Damaged("its two ends differ")
        here, count, length, start = here_64, count_64, length_64, start_64
    if here != count or start + length != ends:
        raise Damaged("its directory is out of place")
    if length > LARGEST_DIRECTORY:
        raise Damaged("its directory is too large")
    return count, start, ends


def _entry(directory: bytes, at: int) -> tuple[int, int, Member]:
    """Return where the next entry begins, where the member's header is, and the member.

    The header tells where the member's content begins; until then ``start`` is 0.
    """
    sign, flags, method, crc, packed, full, *lengths, disk, attributes, header = _ENTRY.unpack_from(
        directory, at
    )
    name_length, extra_length, _ = lengths
    at += _ENTRY.size
    after = at + sum(lengths)
    if sign != b"PK\1\2" or after > len(directory):
        raise Damaged("an entry of its directory is malformed")
    name = directory[at : at + name_length]
    extra = directory[at + name_length : at + name_length + extra_length]
    full, packed, header = _long_numbers(extra, full, packed, header)
    if flags & ~_KNOWN_FLAGS or method != _STORED or packed != full:
        raise Damaged("a member is compressed or encrypted")
    if disk or attributes & _IS_DIRECTORY:
        raise Damaged("a member is not a plain file")
    return after, header, Member(name, crc, full, 0)


def _long_numbers(extra: bytes, *numbers: int) -> list[int]:
    """Return the numbers, with those that do not fit into 32 bits taken from the extra field."""
    missing = [index for index, number in enumerate(numbers) if number == _IN_EXTRA_32]
    result = list(numbers)
    at = 0
    while missing and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA:
            if length < 8 * len(missing) or at + 4 + length > len(extra):
                raise Damaged("the long size of a member is malformed")
            for place, index in enumerate(missing):
                (result[index],) = struct.unpack_from("<Q", extra, at + 4 + 8 * place)
            return result
        at += 4 + length
    if missing:
        raise Damaged("the long size of a member is not there")
    return result


def _content_place(file: BinaryIO, header: int, member: Member, directory: int) -> int:
    """Return where the content of a member ends."""
    local = _read(file, header, _LOCAL.size)
    sign, flags, method, name_length, extra_length = _LOCAL.unpack(local)
    start = header + _LOCAL.size + name_length + extra_length
    if start + member.size > directory:
        raise Damaged("a member is longer than the file")
    if sign != b"PK\3\4" or flags & ~_KNOWN_FLAGS or method != _STORED:
        raise Damaged("the header of a member is malformed")
    if _read(file, header + _LOCAL.size, name_length) != member.name:
        raise Damaged("a member has two names")
    return start + member.size


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    data = file.read(length)
    if len(data) != length:
        raise Damaged("it became shorter while it was read")
    return data
