"""Fetch the archives of a corpus: resumed when broken off, and checked.

What archives.toml knows of an archive is checked.  One of which it knows no checksum is read to its
end; if it is whole, its SHA-256 is recorded, in a file that `sha256sum -c` reads too, and checked
from then on.
"""

import argparse
import hashlib
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from download import (
    Bound,
    CannotStore,
    Unreachable,
    discard,
    download,
    megabytes,
    say,
    size_of_part,
)
from whole import doubt_about

from fairseq_codistill.records import Unreadable, printable, read_file
from fairseq_codistill.records.guarded import write_bytes

CATALOGUE = Path(__file__).with_name("archives.toml")
RECORD = "SHA256SUMS"


@dataclass(frozen=True)
class Archive:
    """One archive: its name, its addresses, and what is known of its bytes."""

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]{0,200}", self.name) or self.name == RECORD:
            raise ValueError(f"an archive cannot have the name '{printable(self.name)}'")
        for value, form in ((self.sha256, "[0-9a-f]{64}"), (self.md5, "[0-9a-f]{32}")):
            if value is not None and not re.fullmatch(form, value):
                raise ValueError(f"'{printable(value)}' is no checksum of {self.name}")
        if self.bytes is not None and (type(self.bytes) is not int or self.bytes < 1):
            raise ValueError(f"'{printable(self.bytes)}' is no size of {self.name}")


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
    try:
        archives = corpora[name]["archives"]
        return Corpus(
            tuple(Archive(**{**each, "urls": tuple(each["urls"])}) for each in archives),
            int(corpora[name]["disk"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{catalogue} is malformed at '{name}': {error}") from error


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


def check(archive: Archive, path: Path, recorded: dict[str, str], disk: int) -> str | None:
    """See whether a file is the archive: by its known or recorded checksum, else by reading it.

    Args:
        archive: what it should be.
        path: the file.
        recorded: SHA-256s of earlier runs.
        disk: the bytes that the whole preparation takes, and so more than are packed in it.

    Returns:
        Why its checksum must not be recorded, or None if it may.

    Raises:
        ValueError: if it is not the archive; the message goes on after the file's name.
    """
    listed = "archives.toml lists"
    known = [
        (algorithm, expected, whose)
        for algorithm, expected, whose in (
            ("sha256", archive.sha256, listed),
            ("md5", archive.md5, listed),
            ("sha256", recorded.get(archive.name), "its first download had"),
        )
        if expected is not None
    ]
    for algorithm, expected, whose in known:
        if (found := digest(path, algorithm)) != expected:
            raise ValueError(
                f"is broken or not the archive it should be: its {algorithm.upper()} is "
                f"{found}, but {whose} {expected}"
            )
    if known:
        return None
    if archive.bytes is not None and (size := path.stat().st_size) != archive.bytes:
        say(f"{archive.name}: it has {size} bytes, but {listed} {archive.bytes}")
    try:
        return doubt_about(path, disk)
    except ValueError as error:
        raise ValueError(f"is broken or not the archive it should be: {error}") from error


def read_record(record: Path) -> dict[str, str]:
    """Return the SHA-256 of each archive in a file like SHA256SUMS."""
    try:
        lines = read_file(record).decode().split("\n")
    except FileNotFoundError:
        return {}
    except (Unreadable, UnicodeDecodeError) as error:
        raise ValueError(f"{record} cannot be used ({error}). {_ANEW}") from error
    recorded: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not match or recorded.setdefault(match[2], match[1].lower()) != match[1].lower():
            raise ValueError(
                f"{record}, line {number}: '{printable(line, 120)}' is not one SHA-256 of one "
                f"archive. {_ANEW}"
            )
    return recorded


_ANEW = (
    "Correct the file; or delete it if you trust the archives that are there, and their checksums "
    "are recorded anew."
)


def places(archive: Archive, mirror: str | None) -> list[str]:
    """Return the folders' files or the addresses where the archive may be had, best first."""
    if mirror is None:
        return list(archive.urls)
    return [f"{mirror.rstrip('/')}/{archive.name}"]


def copy(source: Path, part: Path) -> None:
    """Copy an archive from a folder."""
    if not source.is_file():
        raise Unreachable(f"{source}: there is no such file")
    size_of_part(part)  # sees to it that nothing is in the way
    try:
        shutil.copyfile(source, part)
    except OSError as error:
        discard(part)
        raise CannotStore(f"{source} cannot be copied to {part} ({error.strerror})") from error


def fetch_from(
    place: str, archive: Archive, part: Path, recorded: dict[str, str], disk: int
) -> str | None:
    """Fetch an archive from one place to `part`, and check it; return what `check` returns.

    Raises:
        Unreachable: if it cannot be had from there, or what came is not the archive.
    """
    if archive.bytes is None:
        bound = Bound(disk, "which the whole preparation takes")
    else:
        bound = Bound(archive.bytes, "which archives.toml lists")
    while True:
        pieces = False
        if "://" in place:
            pieces = download(archive.name, place, part, bound, archive.bytes)
        else:
            copy(Path(place), part)
        try:
            return check(archive, part, recorded, disk)
        except ValueError as error:
            discard(part)
            if not pieces:
                raise Unreachable(f"{printable(place)}: what came {error}") from error
            # The pieces need not be of one file: of a server that does not say which version it
            # has, or of two servers.
            say(f"{archive.name}: the file made of several pieces {error}; fetching it anew")


def get(
    archive: Archive, folder: Path, mirror: str | None, recorded: dict[str, str], disk: int
) -> str | None:
    """See to it that the checked archive is in the folder; return what `check` returns."""
    path = folder / archive.name
    if path.is_file():
        say(f"{archive.name}: already there")
        try:
            return check(archive, path, recorded, disk)
        except ValueError as error:
            raise ValueError(
                f"{path} {error}; delete it and run again to download it anew, "
                "or name a place that has the right one with --mirror."
            ) from error
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} is in the way, and no regular file; delete it and run again.")
    part = path.with_name(f"{path.name}.part")
    reasons = []
    for place in places(archive, mirror):
        say(f"{archive.name}: from {printable(place)}")
        try:
            doubt = fetch_from(place, archive, part, recorded, disk)
        except Unreachable as error:
            reasons.append(str(error))
            continue
        part.rename(path)
        discard(part)
        return doubt
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
        doubt = get(archive, args.folder, args.mirror, recorded, corpus.disk)
        if doubt is not None:
            say(f"{archive.name}: its SHA-256 is not recorded, as it may not be whole: {doubt}")
            continue
        recorded[archive.name] = digest(args.folder / archive.name, "sha256")
        sums = "".join(f"{value}  {name}\n" for name, value in recorded.items())
        write_bytes(record, sums.encode())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"fetch.py: {error}")
