"""Print the table at the end of the quickstart: what the two models and their ensemble can do."""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

from sacrebleu.metrics import BLEU

HYPOTHESIS, SCORES = "H", "P"


class Row(NamedTuple):
    """One line of the table; None where a figure makes no sense."""

    name: str
    best_valid_nll: float | None
    last_valid_nll: float | None
    test_nll: float | None
    bleu: float


def valid_nlls(log: str) -> list[float]:
    """Return the NLL of every validation that a training log in JSON format tells of."""
    lines = re.findall(r"\| valid \| (\{.*\})$", log, re.MULTILINE)
    return [float(json.loads(line)["valid_nll_loss"]) for line in lines]


def by_sentence(output: str, kind: str) -> list[str]:
    """Return the last field of fairseq-generate's lines of a kind, in the order of the data.

    Raises:
        ValueError: if a sentence between the first and the last is missing.
    """
    found = re.findall(rf"^{kind}-(\d+)\t(?:.*\t)?(.*)$", output, re.MULTILINE)
    texts = {int(number): text for number, text in found}
    missing = set(range(max(texts, default=-1) + 1)) - set(texts)
    if missing:
        raise ValueError(
            f"fairseq-generate left out sentence {min(missing)} (of {len(missing)} missing); "
            "generate again with --required-batch-size-multiple 1"
        )
    return [texts[number] for number in sorted(texts)]


def reference_nll(output: str) -> float:
    """Return the mean NLL of a token, base 2, from `fairseq-generate --score-reference`."""
    scores = [float(score) for line in by_sentence(output, SCORES) for score in line.split()]
    return -sum(scores) / len(scores)


def row(name: str, run: Path, group: int | None, bleu: BLEU, references: list[str]) -> Row:
    """Collect the figures of one model, or of the ensemble if `group` is None."""
    folder = run / "translations"
    hypotheses = by_sentence((folder / f"{name}.translated").read_text(), HYPOTHESIS)
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{name} has {len(hypotheses)} translations for {len(references)} references; delete "
            f"{folder} and run again"
        )
    nlls = [] if group is None else valid_nlls((run / f"group-{group}/log.txt").read_text())
    return Row(
        name.replace("-", " "),
        min(nlls, default=None),
        nlls[-1] if nlls else None,
        reference_nll((folder / f"{name}.scored").read_text()),
        bleu.corpus_score(hypotheses, [references]).score,
    )


def render(rows: list[Row]) -> str:
    """Lay the rows out as text."""

    def figure(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [
        f"{'':<22}{'valid NLL':>12}{'valid NLL':>12}{'test NLL':>12}{'test BLEU':>12}",
        f"{'':<22}{'(best)':>12}{'(last)':>12}",
    ]
    for name, *nlls, bleu in rows:
        cells = [*(figure(nll, 3) for nll in nlls), figure(bleu, 1)]
        lines.append(f"{name:<22}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Read the run's logs and translations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="prepare-quickstart.sh's folder")
    parser.add_argument("--run", type=Path, required=True, help="codistill launch's --out")
    args = parser.parse_args(argv)

    bleu = BLEU()
    sources, references = (
        (args.data / f"text/test.{language}").read_text(encoding="utf-8").splitlines()
        for language in ("de", "en")
    )
    with (args.data / "data-bin/dict.en.txt").open(encoding="utf-8") as dictionary:
        symbols = sum(1 for _ in dictionary) + 4  # and <s>, <pad>, </s>, <unk>
    copied = bleu.corpus_score(sources, [references]).score
    nothing = math.log2(symbols)
    rows = [
        Row("German as it stands", None, None, None, copied),
        Row("all pieces alike", nothing, nothing, nothing, 0.0),
        *(row(f"model-{group}", args.run, group, bleu, references) for group in (0, 1)),
        row("ensemble", args.run, None, bleu, references),
    ]
    print(f"German to English, {len(references)} test sentences\n")
    print(render(rows))
    print("\nNLL: bits a subword piece, end of sentence included; lower is better.")
    print(f"BLEU: {bleu.get_signature()}; higher is better.")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"quickstart_table.py: {error}")
