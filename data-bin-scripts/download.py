"""Download a gzip file over HTTP, going on where an earlier attempt was broken off.

What a server sends is data.  No more bytes are written than the file can have, no answer is waited
for that brings next to nothing, and nothing is appended to a part that does not continue it.
Whether the whole is the right file is for the caller to check.
"""

import http.client
import io
import re
import shutil
import string
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO

from fairseq_codistill.records import printable, read_object, write_file

GZIP = b"\x1f\x8b"
BLOCK = 1 << 18
# An attempt fails when it brings fewer than RATE_BYTES of the file in RATE_SECONDS.  Attempts that
# do not bring the file RATE_BYTES further are counted, and only so many are made in a row.
RATE_BYTES = 1 << 16
RATE_SECONDS = 30.0
# Seconds between the lines of progress, and before each new attempt after one that got nothing.
PROGRESS_EVERY = 5.0
WAITS = (1.0, 3.0, 10.0, 30.0)
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


class Unreachable(OSError):
    """The file cannot be had from there; another place may have it."""


class CannotStore(OSError):
    """The file cannot be written here, wherever it comes from."""


class Broken(OSError):
    """An attempt failed; the next one may succeed."""


class Useless(Broken):
    """An attempt failed, and the part that is there already cannot be continued."""


class NotTheFile(Unreachable):
    """What the server sends is not the file, and trying again is of no use."""


@dataclass(frozen=True)
class Bound:
    """The most bytes that a file may have, and where that figure is from."""

    bytes: int
    source: str

    def check(self, count: int) -> None:
        """Raise NotTheFile if a file of this many bytes is too large."""
        if count > self.bytes:
            raise NotTheFile(f"the answer is larger than {megabytes(self.bytes)}, {self.source}")


@dataclass(frozen=True)
class Version:
    """Which version of a resource a part is of, as far as the server told."""

    validator: str = ""
    total: int | None = None


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class Progress:
    """Says every few seconds how far a download is."""

    def __init__(self, name: str, start: int, total: int | None) -> None:
        self.name, self.start, self.done, self.total = name, start, start, total
        self.began = self.said = monotonic()

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        self.done += count
        if monotonic() - self.said >= PROGRESS_EVERY:
            self.said = monotonic()
            say(self.line())

    def line(self) -> str:
        """Return how far the download is, and how fast."""
        rate = (self.done - self.start) / max(monotonic() - self.began, 1e-3)
        share = f" of {megabytes(self.total)}, {self.done / self.total:.0%}" if self.total else ""
        return f"{self.name}: {megabytes(self.done)}{share}, {rate / 1e6:.1f} MB/s"


class Pace:
    """The minimal rate of an attempt; what is before the file itself does not count for it."""

    def __init__(self) -> None:
        self.count, self.until = 0, monotonic() + RATE_SECONDS

    def add(self, count: int) -> None:
        """Count bytes of the file."""
        self.count += count
        if self.count >= RATE_BYTES:
            self.count, self.until = 0, monotonic() + RATE_SECONDS

    def left(self) -> float:
        """Return the seconds that are left for the bytes that are still due.

        Raises:
            Broken: if there are none.
        """
        if (left := self.until - monotonic()) <= 0:
            raise Broken(
                f"only {self.count} bytes came in {RATE_SECONDS:g} seconds, fewer than {RATE_BYTES}"
            )
        return left


class _Paced(io.RawIOBase):
    """What comes from a socket, for as long as it keeps the pace."""

    def __init__(self, socket: Any, raw: io.RawIOBase, pace: Pace) -> None:
        self._socket, self._raw, self._pace = socket, raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._pace.left())
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._pace.left()
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    """An answer whose status line, headers and body have to keep the pace."""

    def __init__(self, socket: Any, *args: Any, pace: Pace, **kwargs: Any) -> None:
        super().__init__(socket, *args, **kwargs)
        self.fp: Any = io.BufferedReader(_Paced(socket, self.fp.detach(), pace))


class _PacedHandler(urllib.request.AbstractHTTPHandler):
    """Opens http:// and https:// with a minimal rate."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPSConnection), request)

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return self.do_request_(request)

    https_request = http_request

    def _connection(
        self, kind: type[http.client.HTTPConnection], host: str, **kwargs: Any
    ) -> http.client.HTTPConnection:
        connection = kind(host, **kwargs)
        connection.response_class = partial(_PacedResponse, pace=self._pace)  # type: ignore
        return connection


def _open(url: str, headers: dict[str, str], pace: Pace) -> http.client.HTTPResponse:
    """Open an address, and the one that it is redirected to.

    Not urllib's own redirection: that reads the whole body of a redirect, and goes to ftp:// and
    from https:// to http://, too.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _PacedHandler(pace),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    for _ in range(MOST_REDIRECTS + 1):
        request = urllib.request.Request(url, headers=headers)
        try:
            return opener.open(request, timeout=RATE_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code not in REDIRECTS:
                raise
            error.close()
            url = _redirected(url, error.headers.get("Location") or "")
    raise NotTheFile(f"it is redirected more than {MOST_REDIRECTS} times")


def _redirected(url: str, location: str) -> str:
    """Return where a redirect leads, if it may lead there."""
    try:
        there = urllib.parse.urljoin(url, urllib.parse.quote(location, safe=string.punctuation))
        scheme = urllib.parse.urlsplit(there).scheme
    except ValueError:
        there = scheme = ""
    secure = urllib.parse.urlsplit(url).scheme == "https"
    if not location or scheme not in (("https",) if secure else ("http", "https")):
        kind = "https://" if secure else "http:// or https://"
        raise NotTheFile(f"it is redirected to '{location:.200}', which is no {kind} address")
    return there


def _number(text: str | None) -> int | None:
    """Return a count of bytes in a header, or None if there is none."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text.strip()):
        raise Broken(f"the server sent '{text:.40}' where a number of bytes must be")
    return int(text)


def _version(headers: http.client.HTTPMessage, total: int | None) -> Version:
    """Return which version an answer is of.  A weak ETag cannot be used with If-Range."""
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    for validator, form in ((etag, r'"[!#-~]{0,200}"'), (date, r"[ -~]{1,100}")):
        if re.fullmatch(form, validator):
            return Version(validator, total)
    return Version("", total)


def _read_version(path: Path) -> Version:
    try:
        content = read_object(path)
    except (OSError, ValueError):
        return Version()  # what it cannot tell, the check of the whole file finds
    validator, total = content.get("validator"), content.get("total")
    return Version(
        validator if isinstance(validator, str) and re.fullmatch(r"[ -~]*", validator) else "",
        total if type(total) is int else None,
    )


def _write_version(path: Path, version: Version) -> None:
    try:
        write_file(path, {"validator": version.validator, "total": version.total})
    except OSError as error:
        raise CannotStore(f"{path} cannot be written ({error.strerror})") from error


def size_of_part(part: Path) -> int:
    """Return how many bytes of a file are there already."""
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise CannotStore(f"{part} is in the way, and no regular file; delete it and run again")
    return part.stat().st_size if part.exists() else 0


def version_path(part: Path) -> Path:
    """Return the file that says which version a part is of."""
    return part.with_suffix(".version")


def discard(part: Path) -> None:
    """Delete a part, and what is known of it."""
    part.unlink(missing_ok=True)
    version_path(part).unlink(missing_ok=True)


def _starts_like_gzip(part: Path) -> bool:
    with part.open("rb") as file:
        head = file.read(len(GZIP))
    return GZIP.startswith(head)


@dataclass(frozen=True)
class _Span:
    """Which bytes of the file an answer has: up to, not with, `stop`; None is not known."""

    start: int
    stop: int | None
    total: int | None


def _span(response: http.client.HTTPResponse, start: int, before: int | None) -> _Span:
    """Return which bytes an answer has.

    Args:
        response: the answer.
        start: the byte from which on the file was asked for.
        before: the size of the file, as an earlier answer had it.

    Raises:
        Useless: if it does not go on at that byte, or is of a file of another size.
        Broken: if it cannot be understood.
        NotTheFile: if its status is another one than 200 or 206.
    """
    # A chunked answer ends with a mark of its own, and a length beside it means nothing.
    lengths = [] if response.chunked else response.headers.get_all("Content-Length", [])
    if len(set(lengths)) > 1:
        raise Broken(f"the server sent two lengths, {' and '.join(lengths):.80}")
    length = _number(lengths[0]) if lengths else None
    if response.status == 200:
        return _Span(0, length, length)
    if response.status != 206:
        raise NotTheFile(f"HTTP {response.status} is not an answer with a file")
    said = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)", said)
    if not match or start == 0 or int(match[1]) != start:
        raise Useless(f"asked for the bytes from {start} on, the server sent '{said:.80}'")
    stop = int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if None not in (total, before) and total != before:
        raise Useless(f"the file has {total} bytes now, and had {before} before")
    if stop <= start or (total is not None and stop > total) or length not in (None, stop - start):
        raise Useless(f"the server's lengths contradict each other: '{said:.80}', {length} bytes")
    return _Span(start, stop, before if total is None else total)


def _write(file: BinaryIO, block: bytes, part: Path) -> None:
    try:
        rest = memoryview(block)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise CannotStore(
            f"{part} cannot be written ({error.strerror}); make room, or name a folder on another "
            "disk, and run again"
        ) from error


def _open_part(part: Path, start: int) -> BinaryIO:
    try:
        # Without a buffer, so that a full disk is noticed where the bytes are written.
        return part.open("ab" if start else "wb", buffering=0)  # type: ignore[return-value]
    except OSError as error:
        raise CannotStore(f"{part} cannot be written ({error.strerror})") from error


def _check_room(part: Path, count: int) -> None:
    if (free := shutil.disk_usage(part.parent).free) < count:
        raise CannotStore(
            f"{part} takes {megabytes(count)} more and its disk has {megabytes(free)} free; make "
            "room, or name a folder on another disk, and run again"
        )


def _attempt(name: str, url: str, part: Path, bound: Bound, known: int | None) -> bool:
    """Add to `part` what it lacks of the file; return whether it is complete."""
    start = size_of_part(part)
    if start and not _starts_like_gzip(part):
        raise Useless("the part that is there is no part of an archive")
    version = _read_version(version_path(part)) if start else Version()
    headers = {"User-Agent": "fairseq-codistill", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.validator:
            headers["If-Range"] = version.validator
    pace = Pace()
    try:
        response = _open(url, headers, pace)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            if error.headers.get("Content-Range") == f"bytes */{start}" and (
                version.total in (None, start)
            ):
                return True
            raise Useless("the server does not have the rest of the part that is there") from error
        raise
    with response:
        span = _span(response, start, version.total)
        bound.check(span.start if span.stop is None else span.stop)
        if span.total is not None:
            bound.check(span.total)
            _check_room(part, span.total - span.start)
        if span.start:
            say(f"{name}: going on after {megabytes(span.start)}")
        else:
            told = _version(response.headers, span.total)
            _write_version(version_path(part), told)
        progress = Progress(name, span.start, span.total or known)
        with _open_part(part, span.start) as file:
            _copy(response, file, part, span, bound, progress, pace)
    say(progress.line())
    if span.total is not None:
        return progress.done >= span.total
    if span.start:
        return False  # its size is not known: the next attempt learns that there is no more
    return response.chunked or known in (None, progress.done)


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    part: Path,
    span: _Span,
    bound: Bound,
    progress: Progress,
    pace: Pace,
) -> None:
    head = b"" if span.start == 0 else GZIP
    while block := response.read1(BLOCK):
        pace.add(len(block))
        pace.left()
        head = (head + block[: len(GZIP)])[: len(GZIP)]
        if not GZIP.startswith(head):
            raise NotTheFile("what came is no archive but perhaps a web page about it")
        if span.stop is not None and progress.done + len(block) > span.stop:
            raise Useless("the server sent more than it said")
        bound.check(progress.done + len(block))
        _write(file, block, part)
        progress.add(len(block))
    if progress.done == 0 and not span.total:
        raise Broken("the server sent an empty file")


def _final(error: Exception) -> bool:
    """Return whether trying again would be of no use: the server has answered, and said no."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 416, 425, 429)
    return isinstance(error, (Unreachable, ValueError))


def _reason(error: Exception) -> str:
    """Return why an attempt failed; a server can have had a say in it."""
    if isinstance(error, urllib.error.HTTPError):
        return printable(f"HTTP {error.code} {error.reason}")
    return printable(str(getattr(error, "reason", "") or error) or type(error).__name__)


def download(name: str, url: str, part: Path, bound: Bound, known: int | None = None) -> bool:
    """Download a gzip file to `part`, going on where this or an earlier run was broken off.

    Args:
        name: what to call it.
        url: its address, http:// or https://.
        part: where it goes.
        bound: the most bytes that it may have.
        known: its size, if that is known.

    Returns:
        Whether it is made of more than one answer.

    Raises:
        Unreachable: if it cannot be had from there.
        CannotStore: if it cannot be written.
    """
    shown = printable(url)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise Unreachable(f"{shown}: only http:// and https:// addresses and folders can be used")
    failures, furthest = 0, size_of_part(part)
    pieces = furthest > 0
    while True:
        try:
            if _attempt(name, url, part, bound, known):
                return pieces
            reason = "the connection was closed too early"
        except CannotStore:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = _reason(error)
            if isinstance(error, (Useless, NotTheFile)):
                discard(part)
            if _final(error):
                raise Unreachable(f"{shown}: {reason}") from error
        pieces = True
        # An attempt that brought the file further was no failure: a slow line may break any number
        # of times.
        if (reached := size_of_part(part)) >= furthest + RATE_BYTES:
            failures, furthest = 0, reached
        else:
            failures += 1
        if failures > len(WAITS):
            raise Unreachable(f"{shown}: {reason}")
        say(f"{name}: {reason}; trying again")
        sleep(WAITS[max(failures - 1, 0)])
