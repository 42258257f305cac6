"""How well a run's models translate: what ``examples/evaluate.sh`` has left beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_codistill.records import printable, read_object

FILE = Path("evaluation") / "scores.json"
# What must be alike for two scores to be compared.
CONDITIONS = ("subset", "sentences", "beam", "lenpen", "checkpoints", "references")

LONGEST_CONDITION = 200

_MODEL = re.compile(r"model \d{1,6}")


@dataclass(frozen=True)
class Scores:
    """sacreBLEU of one run.

    Attributes:
        models: of each of its models.
        ensemble: of all of them together; None of a run with one model.
        weight_average: of one model with the mean of all weights; None as above.
        conditions: under what it was measured, in words.
        signature: sacreBLEU's.
    """

    models: list[float]
    ensemble: float | None = None
    weight_average: float | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    signature: str = ""

    @property
    def model(self) -> float:
        """The mean over its models."""
        return sum(self.models) / len(self.models)


def read(out: Path) -> tuple[Scores | None, str | None]:
    """Read the scores of the run at ``out``.

    Returns:
        The scores, or None if there are none; and a sentence on what is wrong with them, or None.
    """
    path = out / FILE
    try:
        return _parse(read_object(path)), None
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{path} is not what evaluate.sh writes, and is left out ({error!r})."


def _parse(said: dict[str, Any]) -> Scores:
    rows = {name: _score(row["sacrebleu"]) for name, row in said["scores"].items()}
    models = [value for name, value in rows.items() if _MODEL.fullmatch(name)]
    if not models:
        raise ValueError("no row 'model 0'")
    return Scores(
        models,
        rows.get("ensemble"),
        rows.get("weight average"),
        {name: printable(said[name], LONGEST_CONDITION) for name in CONDITIONS if name in said},
        printable(said.get("sacrebleu_signature", ""), LONGEST_CONDITION),
    )


def _score(value: object) -> float:
    # sacreBLEU's rounding may give a little more than 100.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 101:
        raise ValueError(f"{printable(value, 20)} is no score")
    return float(value)
