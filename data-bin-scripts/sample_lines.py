"""Draw lines of parallel text, compressed or not, by chance, and see that it is parallel."""

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import fsspec
from lines import write_pairs

# The draw is the same each time.
SEED = 1


def find(prefix: Path, language: str) -> Path:
    """Give the one file of a language, PREFIX.<language> or that with a compression's ending."""
    name = f"{prefix.name}.{language}"
    endings = ("", ".xz", ".gz", ".bz2")
    found = [prefix.with_name(name + ending) for ending in endings]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        sys.exit(
            f"{prefix.parent} has {len(found)} files {name} (or with .xz, .gz or .bz2), where one "
            "is needed; see to the folder of the text"
        )
    return found[0]


def read_pairs(paths: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    """Yield the lines of two files side by side."""
    with contextlib.ExitStack() as stack:
        # Only a newline ends a line, as in lines.read_lines.
        options = {"encoding": "utf-8", "errors": "replace", "newline": "\n"}
        files = [
            stack.enter_context(fsspec.open(str(path), "rt", compression="infer", **options))
            for path in paths
        ]
        for number, pair in enumerate(zip_longest(*files), 1):
            for line, short, long in zip(pair, paths, reversed(paths), strict=True):
                if line is None:
                    sys.exit(
                        f"{short} ends before line {number} and {long} does not: they are not "
                        "each other's translation"
                    )
            yield pair[0].removesuffix("\n"), pair[1].removesuffix("\n")


def draw(text: Path, dest: Path, languages: tuple[str, str], count: int) -> int:
    """Write `count` pairs drawn by chance, in their order, or all for 0; gives their number."""
    first, second = languages
    pairs = list(read_pairs((find(text, first), find(text, second))))
    if count > len(pairs):
        sys.exit(f"{text} has {len(pairs)} lines, fewer than the {count} asked for; ask for less")
    if count:
        drawn = sorted(random.Random(SEED).sample(range(len(pairs)), count))
        pairs = [pairs[i] for i in drawn]
    return write_pairs(dest, languages, pairs)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="folder of {train,valid,test}.<language>")
    parser.add_argument("folder", type=Path, help="new folder for what is drawn")
    parser.add_argument("--languages", nargs=2, required=True)
    parser.add_argument("--train", type=int, default=0, help="lines of train; 0: all")
    parser.add_argument("--held-out", type=int, default=0, help="lines of valid, and of test")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Draw from each part."""
    args = parse_args(argv)
    args.folder.mkdir()
    for part in ("train", "valid", "test"):
        count = args.train if part == "train" else args.held_out
        drawn = draw(args.text / part, args.folder / part, tuple(args.languages), count)
        print(f"{part}: {drawn} lines")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"sample_lines.py: {error}")
