"""Score what fairseq-generate wrote: a table for people, JSON for programs.

Two figures for each output.  sacreBLEU is for comparing with other papers: detokenised text,
sacreBLEU's own tokenisation, a signature.  The tokenised, compound-split BLEU is the one of Ott et
al. (2018), i.e. of fairseq's compound_split_bleu.sh: words as the corpus has them, and every
hyphen between two characters a word of its own, which raises the figure for German.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from quickstart_table import HYPOTHESIS, by_sentence
from sacrebleu.metrics import BLEU

TARGET = "T"
Scores = dict[str, float | None]


def split_compounds(line: str) -> str:
    """Make each hyphen between two characters a word that no text contains."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line)


def tokenised_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Give the BLEU of words as they are, compounds split, as fairseq-score counts it."""
    # force: it would warn that the text looks tokenised.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    split = [[split_compounds(line) for line in lines] for lines in (hypotheses, references)]
    return metric.corpus_score(split[0], [split[1]]).score


def detokeniser(language: str) -> Callable[[str], str]:
    """Give what undoes the Moses tokenisation of a language."""
    try:
        from sacremoses import MosesDetokenizer
    except ImportError:
        raise ValueError(
            "sacremoses is missing, which undoes the corpus's tokenisation; pip install sacremoses"
        ) from None
    moses = MosesDetokenizer(lang=language)
    return lambda line: moses.detokenize(line.split())


def score(
    output: str, detokenise: Callable[[str], str] | None, raw: Sequence[str] | None
) -> tuple[Scores, int]:
    """Score one output of fairseq-generate; also give the number of its sentences.

    Args:
        output: its lines.
        detokenise: undoes the tokenisation; None for text that is not tokenised.
        raw: references that nobody has tokenised; None to detokenise those of the output.

    Raises:
        ValueError: if sentences are missing.
    """
    hypotheses, references = by_sentence(output, HYPOTHESIS), by_sentence(output, TARGET)
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} translations for {len(references)} references; generate again"
        )
    if raw is not None and len(raw) != len(hypotheses):
        raise ValueError(
            f"--references has {len(raw)} lines for {len(hypotheses)} translations; give those of "
            "the same set"
        )
    tokenised = None
    plain = hypotheses
    if detokenise is not None:
        tokenised = tokenised_bleu(hypotheses, references)
        plain = [detokenise(line) for line in hypotheses]
        references = [detokenise(line) for line in references]
    sacre = BLEU().corpus_score(plain, [list(raw or references)]).score
    return {"sacrebleu": sacre, "compound_split_bleu": tokenised}, len(hypotheses)


def signature() -> str:
    """Give sacreBLEU's signature for one reference."""
    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def render(scores: dict[str, Scores]) -> str:
    """Lay the scores out as text."""
    lines = [f"{'':<22}{'sacreBLEU':>12}{'compound-split BLEU':>22}"]
    for name, row in scores.items():
        cells = ["-" if value is None else f"{value:.2f}" for value in row.values()]
        lines.append(f"{name:<22}{cells[0]:>12}{cells[1]:>22}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Score the outputs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "outputs", nargs="+", metavar="NAME=FILE", help="a row of the table and its output"
    )
    parser.add_argument("--language", required=True, help="of the translations, as in de")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--references", type=Path, help="untokenised references, one a line")
    parser.add_argument(
        "--untokenised", action="store_true", help="the text was cut into subwords and no more"
    )
    parser.add_argument("--note", action="append", default=[], help="KEY=VALUE, for the JSON")
    args = parser.parse_args(argv)

    detokenise = None if args.untokenised else detokeniser(args.language)
    raw = args.references and args.references.read_text(encoding="utf-8").splitlines()
    scores: dict[str, Scores] = {}
    for named in args.outputs:
        name, _, file = named.partition("=")
        scores[name], sentences = score(Path(file).read_text(encoding="utf-8"), detokenise, raw)
    if args.references:
        references = str(args.references)
    else:
        references = "the data's" if args.untokenised else "the data's, detokenised"
    result = {
        **dict(note.split("=", 1) for note in args.note),
        "sentences": sentences,
        "references": references,
        "sacrebleu_signature": signature(),
        "scores": scores,
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(render(scores))
    print(f"\n{sentences} sentences; references: {references}")
    print(f"sacreBLEU: {result['sacrebleu_signature']}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate_scores.py: {error}")
