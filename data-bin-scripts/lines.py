"""Read and write text as lines that only a newline ends."""

from collections.abc import Iterable, Iterator
from pathlib import Path


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file without their ends."""
    # Corpora contain stray U+2028, U+0085 or carriage returns.  str.splitlines ends lines there,
    # Perl, sed and awk do not: one of them, and all later lines would have the wrong translation.
    # Broken UTF-8 becomes U+FFFD: fairseq-preprocess would stop at it.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write the lines to a file and return how many they were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(f"{line}\n")
            count += 1
    return count


def write_pairs(prefix: Path, languages: tuple[str, str], pairs: Iterable[tuple[str, str]]) -> int:
    """Write sentence pairs as two files, PREFIX.<language>, and return how many they were."""
    first, second = (prefix.with_name(f"{prefix.name}.{language}") for language in languages)
    count = 0
    with (
        first.open("w", encoding="utf-8", newline="\n") as left,
        second.open("w", encoding="utf-8", newline="\n") as right,
    ):
        for one, other in pairs:
            left.write(f"{one}\n")
            right.write(f"{other}\n")
            count += 1
    return count
