"""Learn one SentencePiece model for both languages, or cut text into its pieces."""

import argparse
import sys
from pathlib import Path

import sentencepiece
from lines import read_lines, write_lines


def train(texts: list[Path], model: Path, vocab_size: int, sample: int = 0) -> None:
    """Learn a unigram model from all the files together and write it to `model`.

    With `sample` it is learnt from so many lines, chosen by chance, at most.
    """
    sentences = (line for text in texts for line in read_lines(text))
    with model.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=writer,
            vocab_size=vocab_size,
            character_coverage=1.0,
            input_sentence_size=sample,
            num_threads=2,
            minloglevel=1,
        )


def encode(model: Path, text: Path, pieces: Path) -> None:
    """Write the pieces of every line of `text`, separated by spaces, to `pieces`."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    write_lines(
        pieces, (" ".join(processor.encode(line, out_type=str)) for line in read_lines(text))
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train", help="learn a model")
    learn.add_argument("texts", nargs="+", type=Path)
    learn.add_argument("--model", type=Path, required=True, help="where the model goes")
    learn.add_argument("--vocab-size", type=int, required=True)
    apply = commands.add_parser("encode", help="cut text into pieces")
    apply.add_argument("model", type=Path)
    apply.add_argument("text", type=Path)
    apply.add_argument("pieces", type=Path, help="where the pieces go")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command that was asked for."""
    args = parse_args(argv)
    if args.command == "train":
        train(args.texts, args.model, args.vocab_size)
    else:
        encode(args.model, args.text, args.pieces)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as error:
        sys.exit(f"sentencepiece_text.py: {error}")
