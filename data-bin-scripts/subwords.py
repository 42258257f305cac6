"""Cut {train,valid,test} of two languages into subwords, of one kind for both languages.

`bpe` learns byte-pair codes with subword-nmt from the two training texts, in the order of
--languages, or takes given ones; the codes are then in `code`.  `sentencepiece` learns a unigram
model instead, in `sentencepiece.model`, from the same text.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import sentencepiece_text
from lines import read_lines, write_lines
from parallel import map_in_processes
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

PARTS = ("train", "valid", "test")


def learn_codes(texts: list[Path], codes: Path, merges: int) -> None:
    """Learn this many merges from the texts, one after the other, and write them to `codes`."""
    with codes.open("w", encoding="utf-8", newline="\n") as file:
        learn_bpe(chain.from_iterable(map(read_lines, texts)), file, merges)


_bpe: BPE | None = None


def _start_worker(codes: Path) -> None:
    global _bpe
    with codes.open(encoding="utf-8") as file:
        _bpe = BPE(file)


def _apply_here(line: str) -> str:
    assert _bpe is not None
    return _bpe.process_line(line)


def apply_codes(lines: Iterable[str], codes: Path, workers: int = 1) -> Iterator[str]:
    """Yield every line cut by the codes, in order; by so many processes."""
    if workers <= 1:
        with codes.open(encoding="utf-8") as file:
            yield from map(BPE(file).process_line, lines)
        return
    yield from map_in_processes(_apply_here, lines, workers, _start_worker, (codes,))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["bpe", "sentencepiece"])
    parser.add_argument("text", type=Path, help="folder of the text")
    parser.add_argument("folder", type=Path, help="new folder for the subwords")
    parser.add_argument("--languages", nargs=2, required=True)
    parser.add_argument("--size", type=int, required=True, help="merges, or pieces of the model")
    parser.add_argument("--codes", type=Path, help="BPE codes to take in place of learning some")
    parser.add_argument(
        "--sample", type=int, default=0, help="lines that SentencePiece learns from; 0: all"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that apply BPE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Learn the subwords and cut the text into them."""
    args = parse_args(argv)
    args.folder.mkdir()
    train = [args.text / f"train.{language}" for language in args.languages]
    files = [f"{part}.{language}" for part in PARTS for language in args.languages]
    if args.kind == "sentencepiece":
        model = args.folder / "sentencepiece.model"
        sentencepiece_text.train(train, model, args.size, args.sample)
        for file in files:
            sentencepiece_text.encode(model, args.text / file, args.folder / file)
        return
    codes = args.folder / "code"
    if args.codes is None:
        learn_codes(train, codes, args.size)
    else:
        shutil.copyfile(args.codes, codes)
    for file in files:
        lines = read_lines(args.text / file)
        # The few thousand lines of valid and test are done before other processes have started.
        workers = args.workers if file.startswith("train.") else 1
        write_lines(args.folder / file, apply_codes(lines, codes, workers))


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"subwords.py: {error}")
