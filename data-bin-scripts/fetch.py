"""Fetch the archives of a corpus: resumed when broken off, and checked.

What archives.toml knows of an archive is checked; for one of which it knows no checksum, the first
download's is recorded, in a file that `sha256sum -c` reads too, and checked from then on.
"""

import argparse
import hashlib
import http.client
import shutil
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CATALOGUE = Path(__file__).with_name("archives.toml")
RECORD = "SHA256SUMS"
GZIP = b"\x1f\x8b"
BLOCK = 1 << 18
TIMEOUT = 60.0
# Seconds between the lines of progress, and before each new attempt after one that got nothing.
PROGRESS_EVERY = 5.0
WAITS = (1.0, 3.0, 10.0, 30.0)


class Unreachable(OSError):
    """The archive cannot be had from where it was looked for."""


@dataclass(frozen=True)
class Archive:
    """One archive: its name, its addresses, and what is known of its bytes."""

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Corpus:
    """The archives of one corpus, and the bytes of disk that preparing it takes."""

    archives: tuple[Archive, ...]
    disk: int


def read_corpus(catalogue: Path, name: str) -> Corpus:
    """Return one corpus of a file like archives.toml."""
    with catalogue.open("rb") as file:
        corpora = tomllib.load(file)
    if name not in corpora:
        raise ValueError(f"{catalogue} has no corpus '{name}', only {', '.join(corpora)}.")
    archives = corpora[name]["archives"]
    return Corpus(
        tuple(Archive(**{**each, "urls": tuple(each["urls"])}) for each in archives),
        corpora[name]["disk"],
    )


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def check_space(corpus: Corpus, folder: Path, have: int = 0) -> None:
    """Raise OSError unless the folder's disk has room for what is still to come of the corpus."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < corpus.disk - have:
        raise OSError(
            f"there is too little room for {folder}: the preparation takes "
            f"{megabytes(corpus.disk - have)} and {place} has {megabytes(free)} free; make room, "
            "or name a folder on another disk."
        )


def digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check(archive: Archive, path: Path, recorded: dict[str, str]) -> None:
    """Raise ValueError unless the file is the archive, by its known or its recorded checksum."""
    listed = "archives.toml lists"
    for algorithm, expected, whose in (
        ("sha256", archive.sha256, listed),
        ("md5", archive.md5, listed),
        ("sha256", recorded.get(archive.name), "its first download had"),
    ):
        if expected is not None and (found := digest(path, algorithm)) != expected:
            raise ValueError(
                f"{path} is broken or not the archive it should be: its {algorithm.upper()} is "
                f"{found}, but {whose} {expected}; delete it and run again to download it anew, "
                "or name a place that has the right one with --mirror."
            )


def read_record(record: Path) -> dict[str, str]:
    """Return the SHA-256 of each archive in a file like SHA256SUMS."""
    if not record.exists():
        return {}
    lines = record.read_text(encoding="utf-8").splitlines()
    return {name: value for value, name in (line.split("  ", 1) for line in lines)}


class Progress:
    """Says every few seconds how far a download is."""

    def __init__(self, name: str, start: int, total: int | None) -> None:
        self.name, self.start, self.done, self.total = name, start, start, total
        self.began = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        self.done += count
        if time.monotonic() - self.said >= PROGRESS_EVERY:
            self.said = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """Return how far the download is, and how fast."""
        rate = (self.done - self.start) / max(time.monotonic() - self.began, 1e-3)
        share = f" of {megabytes(self.total)}, {self.done / self.total:.0%}" if self.total else ""
        return f"{self.name}: {megabytes(self.done)}{share}, {rate / 1e6:.1f} MB/s"


def _validator(headers: http.client.HTTPMessage) -> str:
    """Return what names this version of a resource, for If-Range; a weak ETag cannot."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _copy(source: BinaryIO, target: BinaryIO, progress: Progress) -> None:
    while block := source.read(BLOCK):
        target.write(block)
        progress.add(len(block))


def download_once(archive: Archive, url: str, part: Path) -> bool:
    """Add to `part` what it lacks of the resource; return whether it is complete.

    The version of the resource that the bytes in `part` are of is kept beside it: where a server
    has another one by now, or serves no ranges, the download starts anew.
    """
    version = part.with_suffix(".version")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "fairseq-codistill"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version.exists() and (known := version.read_text(encoding="utf-8")):
            request.add_header("If-Range", known)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        total = error.headers.get("Content-Range", "").removeprefix("bytes */")
        if error.code == 416 and total == str(start):
            return True
        if error.code == 416:
            part.unlink()
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total_bytes = start + int(length) if length else archive.bytes
        if start:
            say(f"{archive.name}: going on after {megabytes(start)}")
        else:
            version.write_text(_validator(response.headers), encoding="utf-8")
        progress = Progress(archive.name, start, total_bytes)
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, progress)
    say(progress.line())
    return total_bytes is None or part.stat().st_size >= total_bytes


def _final(error: Exception) -> bool:
    """Return whether trying again would be of no use: the server has answered, and said no."""
    return (
        isinstance(error, urllib.error.HTTPError)
        and error.code < 500
        and error.code not in (408, 416, 429)
    )


def download(
    archive: Archive, url: str, path: Path, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Download an archive to `path`, going on where this or an earlier run was broken off."""
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if download_once(archive, url, part):
                break
            reason = "the connection was closed too early"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
            if isinstance(error, urllib.error.HTTPError):
                reason = f"HTTP {error.code} {error.reason}"
            if _final(error) or isinstance(error, ValueError):
                raise Unreachable(f"{url}: {reason}") from error
        # An attempt that brought something was no failure: a slow line may break any number of
        # times.
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures > len(WAITS):
            raise Unreachable(f"{url}: {reason}")
        say(f"{archive.name}: {reason}; trying again")
        sleep(WAITS[max(failures - 1, 0)])
    with part.open("rb") as file:
        magic = file.read(len(GZIP))
    if magic != GZIP:
        part.unlink()
        raise Unreachable(f"{url}: what came is no archive but perhaps a web page about it")
    part.rename(path)
    part.with_suffix(".version").unlink(missing_ok=True)


def places(archive: Archive, mirror: str | None) -> list[str]:
    """Return the folders' files or the addresses where the archive may be had, best first."""
    if mirror is None:
        return list(archive.urls)
    return [f"{mirror.rstrip('/')}/{archive.name}"]


def get(archive: Archive, folder: Path, mirror: str | None, recorded: dict[str, str]) -> Path:
    """Return the path of the checked archive in the folder, after fetching it if it lacks."""
    path = folder / archive.name
    if path.exists():
        say(f"{archive.name}: already there")
        check(archive, path, recorded)
        return path
    reasons = []
    for place in places(archive, mirror):
        say(f"{archive.name}: from {place}")
        try:
            if "://" in place:
                download(archive, place, path)
            elif Path(place).is_file():
                part = path.with_name(f"{path.name}.part")
                shutil.copyfile(place, part)
                part.rename(path)
            else:
                raise Unreachable(f"{place}: there is no such file")
        except Unreachable as error:
            reasons.append(str(error))
            continue
        check(archive, path, recorded)
        return path
    raise Unreachable(
        f"{archive.name} cannot be had ({'; '.join(reasons)}). Put the archive, from wherever you "
        f"can get it, into {folder}, or name a folder or an address that has it with "
        "--mirror URL_OR_FOLDER; then run again: what is done already is kept."
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", help="a corpus in the catalogue")
    parser.add_argument("folder", type=Path, help="where the archives go")
    parser.add_argument("--mirror", help="folder or address that has the archives")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help="default: archives.toml")
    parser.add_argument(
        "--check-space", action="store_true", help="only see whether the disk has the room"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Fetch and check the archives, or see whether there is room for them."""
    args = parse_args(argv)
    corpus = read_corpus(args.catalogue, args.corpus)
    paths = [args.folder / archive.name for archive in corpus.archives]
    if args.check_space:
        have = sum(path.stat().st_size for path in paths if path.exists())
        check_space(corpus, args.folder, have)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    record = args.folder / RECORD
    recorded = read_record(record)
    for archive in corpus.archives:
        path = get(archive, args.folder, args.mirror, recorded)
        recorded[archive.name] = digest(path, "sha256")
        sums = "".join(f"{value}  {name}\n" for name, value in recorded.items())
        record.write_text(sums, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"fetch.py: {error}")
