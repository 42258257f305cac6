"""`codistill report`: how often two models agree."""

import json
import re
from pathlib import Path

import pytest
from written_runs import report, write_run

from fairseq_codistill.report import (
    KEYS,
)


def compared(update: int | None, share: float, groups=(0, 1), later: int | None = None) -> str:
    """A line of vision.diagnostics; one of before it told updates and groups, if update is None."""
    places = [f"runs/x/group-{group}/checkpoint_last.pt" for group in groups]
    said = {"checkpoints": places, "agreement": share, "churn": 1 - share}
    if update is not None:
        said |= {"groups": list(groups), "updates": [update, later or update]}
    alone = {"checkpoint": places[0], "images": 7, "top1": 50.0}
    return f"{json.dumps(alone)}\n{json.dumps(said)}\n"


def write_agreement(run: Path, *lines: str) -> Path:
    path = run / "agreement.jsonl"
    path.write_text("".join(lines))
    return path


def test_the_agreement_of_a_run(tmp_path, capsys):
    both = [write_run(tmp_path / f"both-{seed}", seed, groups=2) for seed in (1, 2)]
    # The same update again counts once; a group beside itself, or beside an older one, never.
    odd = [compared(40, 0.1, groups=(1, 1)), compared(40, 0.1, later=30)]
    write_agreement(both[0], compared(20, 0.5), compared(40, 0.2), compared(40, 0.75), *odd)
    write_agreement(both[1], compared(20, 0.25), compared(40, 0.5))
    three = write_run(tmp_path / "three", 1, groups=3)
    pairs = [compared(None, 0.25, (0, 1)), compared(None, 0.5, (0, 2)), compared(None, 1, (1, 2))]
    write_agreement(three, *pairs)
    plain = write_run(tmp_path / "plain", 1)
    out = tmp_path / "out"
    report(capsys, plain, "--as", "both", *both, "--as", "three", three, "--out", out, "--json")
    text = (out / "report.md").read_text()
    rows = text.split("## Agreement between groups")[1].split("\n\n")[1].splitlines()
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]] == [
        ["both", "2", "62.50 (50.00 to 75.00)", "37.50 (25.00 to 50.00)", "40"],
        ["three", "1", "58.33", "41.67", "-"],
    ]
    document = json.loads((out / "report.json").read_text())
    labelled = {one["label"]: one["agreement"] for one in document["labels"]}
    assert labelled["plain"] == []
    assert labelled["both"][0] == {
        "run": str(both[0]),
        "updates": [20, 40],
        "agreement": [0.5, 0.75],
        "churn": [0.5, 0.25],
    }
    assert labelled["three"][0]["updates"] == [None]
    # One comparison makes no curve.
    alt = re.search(r"!\[(.*)\]\(agreement.png\)", text)[1]
    assert "% of the images" in alt
    assert alt.endswith("the lines end at: both 62.5.")
    assert (out / "agreement.png").stat().st_size > 10000
    for key in labelled["both"][0]:
        assert re.search(rf"\b{key}\b", KEYS)


NO_AGREEMENT = "is not what vision.diagnostics writes, and is left out"
NO_PAIR = "compares no two groups at one update, and is left out"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("torn", NO_AGREEMENT),
        ("[1]", NO_PAIR),
        (compared(40, 1.5), NO_AGREEMENT),
        ("", NO_PAIR),
        (compared(40, 0.5, groups=(1, 1)), NO_PAIR),
    ],
)
def test_an_agreement_that_is_none_is_left_out(tmp_path, capsys, text, why):
    path = write_agreement(write_run(tmp_path / "a", 1, groups=2), text)
    said = report(capsys, tmp_path / "a", "--out", tmp_path / "out")
    assert f"note: {path} {why}" in said
    assert "Agreement" not in (tmp_path / "out/report.md").read_text()
