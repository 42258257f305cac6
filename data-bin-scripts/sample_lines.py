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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="PREFIX of PREFIX.<language>[.xz, .gz or .bz2]")
    parser.add_argument("dest", type=Path, help="PREFIX of what is written")
    parser.add_argument("--languages", nargs=2, required=True)
    parser.add_argument("--count", type=int, required=True, help="lines to draw; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Draw the lines; they keep their order."""
    args = parse_args(argv)
    first, second = args.languages
    pairs = list(read_pairs((find(args.text, first), find(args.text, second))))
    if args.count > len(pairs):
        sys.exit(f"{args.text} has {len(pairs)} lines, fewer than the {args.count} asked for")
    if args.count:
        drawn = sorted(random.Random(args.seed).sample(range(len(pairs)), args.count))
        pairs = [pairs[i] for i in drawn]
    count = write_pairs(args.dest, (first, second), pairs)
    print(f"{args.dest.name}: {count} lines")


if __name__ == "__main__":
    main()
