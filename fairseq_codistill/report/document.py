"""The raw numbers of a report as one JSON document, whose keys stay as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fairseq_codistill.report import figures, series
from fairseq_codistill.report.labels import Label
from fairseq_codistill.report.runs import Model, Run

FORMAT = 1


def as_json(labels: Sequence[Label], notes: Sequence[str]) -> str:
    """Give the document described by ``report.KEYS``."""
    document = {
        "format": FORMAT,
        "notes": list(notes),
        "labels": [_label(label) for label in labels],
    }
    return json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"


def _label(label: Label) -> dict[str, Any]:
    spreads = label.spreads()
    return {
        "label": label.name,
        "codistilled": label.codistilled,
        "spreads": {name: asdict(one) if one else None for name, one in spreads.items()},
        "runs": [
            {"run": run.named, **asdict(run.origin)} for run in label.runs if run.origin is not None
        ],
        "scores": [
            {"run": run.named, **asdict(run.scores)} for run in label.runs if run.scores is not None
        ],
        "agreement": [
            {
                "run": run.named,
                "updates": run.agreement.updates,
                "agreement": run.agreement.shares,
                "churn": run.agreement.churn,
            }
            for run in label.runs
            if run.agreement is not None
        ],
        "models": [_model(run, model) for run in label.runs for model in run.models],
    }


def _model(run: Run, model: Model) -> dict[str, Any]:
    curves = {name: series.curve(model.log, name) for name in series.QUANTITIES}
    return {
        "log": str(model.path),
        "run": run.named,
        "group": model.group,
        "seed": model.seed,
        "run_id": run.run_id,
        "git_commit": run.git_commit,
        "figures": asdict(figures.measure(model.log)),
        "curves": {
            name: {
                "updates": [int(update) for update in one.updates],
                "values": one.values.tolist(),
            }
            for name, one in curves.items()
        },
    }


def _plain(value: Any) -> Any:
    """Give null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
