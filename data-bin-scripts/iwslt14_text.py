"""Make the text of IWSLT'14 German-English as fairseq's prepare-iwslt14.sh does.

From the archive of the corpus come {train,valid,test}.{de,en}: tokenised by Moses' rules, cleaned
(training and validation: 1 to 175 words, at most 1.5 times as many on one side as on the other)
and lower-cased.  Every 23rd pair of the training text is for validation; the test set is five of
the campaigns' sets in a row.
"""

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lines import read_lines, write_pairs
from moses_text import clean, lower, tokenize_pairs
from unpack import unpack

LANGUAGES = ("de", "en")
TRAIN = "train.tags.de-en.{}"
TESTS = [
    f"IWSLT14.{name}.de-en.{{}}.xml"
    for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
]
VALID_EVERY = 23
MAX_WORDS = 175
MAX_RATIO = 1.5

# What fairseq's script makes of the whole archive: pairs, and the SHA-256 of the text.
PAIRS = {"train": 160_239, "valid": 7_283, "test": 6_750}
SHA256 = {
    "valid.de": "3f051579c9d8c7281a6ea8c72ad4ae09dbaa9bb24dfd41166f2c3a3df7cd940a",
    "valid.en": "e6d7317a9772cd1ed970910c611e9e7dada1f34439269b44a9d801334bff948d",
    "test.de": "e718c783e33160b7d72af8f733756a466e0d0c016eff8ab624c1b0d1d01cbbdf",
    "test.en": "4b127beb9050511a3e6209cd837ff36f623a3a423666b32aba6e208b7330cf4c",
}

Pair = tuple[str, str]


def talk_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield what is said in the talks of a train.tags file, and their titles and descriptions."""
    for line in lines:
        if not any(tag in line for tag in ("<url>", "<talkid>", "<keywords>")):
            yield re.sub(r"</?(?:title|description)>", "", line)


def segments(lines: Iterable[str]) -> Iterator[str]:
    """Yield the segments of an XML file of a test set, which has each on a line of its own."""
    for line in lines:
        if "<seg id" in line:
            text = re.sub(r'<seg id="[0-9]*">\s*', "", line)
            yield re.sub(r"\s*</seg>\s*", "", text).replace("’", "'")


def lower_pair(pair: Pair) -> Pair:
    """Return the pair in lower case."""
    return lower(pair[0]), lower(pair[1])


def make_text(unpacked: Path, folder: Path, workers: int) -> dict[str, int]:
    """Write the three parts into the folder and return how many pairs each has."""

    def sides(name: str) -> tuple[Iterator[str], Iterator[str]]:
        de, en = (read_lines(unpacked / name.format(language)) for language in LANGUAGES)
        return de, en

    de, en = sides(TRAIN)
    pairs = tokenize_pairs((talk_lines(de), talk_lines(en)), LANGUAGES, workers)
    kept = [lower_pair(pair) for pair in clean(pairs, MAX_WORDS, MAX_RATIO)]
    tests: list[Pair] = []
    for name in TESTS:
        de, en = sides(name)
        tests += map(lower_pair, tokenize_pairs((segments(de), segments(en)), LANGUAGES))
    parts = {
        "train": [pair for number, pair in enumerate(kept, 1) if number % VALID_EVERY],
        "valid": kept[VALID_EVERY - 1 :: VALID_EVERY],
        "test": tests,
    }
    return {name: write_pairs(folder / name, LANGUAGES, part) for name, part in parts.items()}


def compare(folder: Path, counts: dict[str, int]) -> Iterator[str]:
    """Yield a line for each part on whether it is what fairseq's script makes."""
    for name, count in counts.items():
        line = f"{name}: {count} pairs"
        if count != PAIRS[name]:
            line += f" (the whole archive gives {PAIRS[name]})"
        files = [f"{name}.{language}" for language in LANGUAGES]
        known = [file for file in files if file in SHA256]
        if known and count == PAIRS[name]:
            found = [hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in known]
            same = found == [SHA256[file] for file in known]
            line += f", {'byte for byte' if same else 'NOT'} what fairseq's script gives"
        yield line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="de-en.tgz")
    parser.add_argument("folder", type=Path, help="new folder for the text")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the text of the archive."""
    args = parse_args(argv)
    args.folder.mkdir()
    with tempfile.TemporaryDirectory(dir=args.folder) as unpacked:
        names = [name.format(language) for name in [TRAIN, *TESTS] for language in LANGUAGES]
        unpack(args.archive, names, Path(unpacked))
        counts = make_text(Path(unpacked), args.folder, args.workers)
    for line in compare(args.folder, counts):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"iwslt14_text.py: {error}")
