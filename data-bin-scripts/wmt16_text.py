"""Make the text of WMT'16 English-German that fairseq's scaling recipe trains on.

Two ways: `prepared` takes the files out of Google's archive, which has them after BPE; `sources`
makes the text before BPE from the organisers' archives as Google's script did (Europarl v7, Common
Crawl, News Commentary v11; tokenised by Moses' rules; training pairs of 1 to 80 words and at most
9 times as many on one side).  Both give {train,valid,test}.{en,de}: newstest2013 is for
validation, newstest2014 for the test.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lines import read_lines, write_pairs
from moses_text import clean, tokenize_pairs
from unpack import unpack

LANGUAGES = ("en", "de")
PREPARED = {
    "train": "train.tok.clean.bpe.32000.{}",
    "valid": "newstest2013.tok.bpe.32000.{}",
    "test": "newstest2014.tok.bpe.32000.{}",
}
CODES = "bpe.32000"

# In the order of Google's script: BPE breaks ties by what comes first.
TRAIN = {
    "training-parallel-europarl-v7.tgz": "europarl-v7.de-en.{}",
    "training-parallel-commoncrawl.tgz": "commoncrawl.de-en.{}",
    "training-parallel-nc-v11.tgz": "news-commentary-v11.de-en.{}",
}
VALID = "newstest2013.{}"
TEST = {"de": "newstest2014-deen-src.de.sgm", "en": "newstest2014-deen-ref.en.sgm"}
MAX_WORDS = 80

# What Google's archive has.
PAIRS = {"train": 4_500_966, "valid": 3_000, "test": 3_003}

SEGMENT = re.compile(r"<seg[^>]+>\s*(.*?)\s*</seg>", re.IGNORECASE | re.DOTALL)

Pair = tuple[str, str]


def segments(sgm: str) -> Iterator[str]:
    """Yield the segments of an SGML file, each on one line with single spaces."""
    for match in SEGMENT.finditer(sgm):
        yield " ".join(match[1].split())


def take_prepared(archives: Path, folder: Path) -> dict[str, int]:
    """Take the parts after BPE, and the BPE codes, out of Google's archive."""
    names = [name.format(language) for name in PREPARED.values() for language in LANGUAGES]
    unpack(archives / "wmt16_en_de.tar.gz", [*names, CODES], folder)
    (folder / CODES).rename(folder / "code")
    counts = {}
    for part, name in PREPARED.items():
        lengths = set()
        for language in LANGUAGES:
            path = (folder / name.format(language)).rename(folder / f"{part}.{language}")
            with path.open("rb") as file:
                lengths.add(sum(1 for _ in file))
        if len(lengths) > 1:
            raise ValueError(f"the archive's {part} sides differ in their number of lines.")
        counts[part] = lengths.pop()
    return counts


def make_text(archives: Path, folder: Path, workers: int) -> dict[str, int]:
    """Make the parts before BPE from the organisers' archives."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unpacked = Path(scratch)
        for archive, name in TRAIN.items():
            unpack(archives / archive, [name.format(language) for language in LANGUAGES], unpacked)
        tests = [VALID.format(language) for language in LANGUAGES] + list(TEST.values())
        unpack(archives / "dev.tgz", tests, unpacked)

        def train_lines(language: str) -> Iterator[str]:
            for name in TRAIN.values():
                yield from read_lines(unpacked / name.format(language))

        def valid_lines(language: str) -> Iterator[str]:
            return read_lines(unpacked / VALID.format(language))

        def test_lines(language: str) -> Iterator[str]:
            return segments((unpacked / TEST[language]).read_text(encoding="utf-8"))

        def pairs(lines: Callable[[str], Iterator[str]], workers: int) -> Iterator[Pair]:
            en, de = map(lines, LANGUAGES)
            return tokenize_pairs((en, de), LANGUAGES, workers)

        parts = {
            "train": clean(pairs(train_lines, workers), MAX_WORDS),
            "valid": pairs(valid_lines, 1),
            "test": pairs(test_lines, 1),
        }
        return {name: write_pairs(folder / name, LANGUAGES, part) for name, part in parts.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["prepared", "sources"])
    parser.add_argument("archives", type=Path, help="folder of the archives")
    parser.add_argument("folder", type=Path, help="new folder for the text")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the text of the archives."""
    args = parse_args(argv)
    args.folder.mkdir()
    if args.way == "prepared":
        counts = take_prepared(args.archives, args.folder)
    else:
        counts = make_text(args.archives, args.folder, args.workers)
    for name, count in counts.items():
        also = "" if count == PAIRS[name] else f" (Google's archive has {PAIRS[name]})"
        print(f"{name}: {count} pairs{also}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"wmt16_text.py: {error}")
