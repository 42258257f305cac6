"""Logs and scores as training leaves them, written for the tests of `codistill report`."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_codistill import cli
from fairseq_codistill.report import (
    logs,
)

PREFIX = "2026-01-01 00:00:00 | INFO | {} | "
HYDRA = "[2026-01-01 00:00:00,123][{}][INFO] - "
SETTINGS = (
    "{'_name': None, 'common': {'_name': None, 'seed': SEED, 'cpu': True}, "
    "'checkpoint': {'save_dir': 'DIR'}, 'optimization': {'max_update': 40, 'lr': [LR]}, "
    "'model': Namespace(arch='transformer', seed=SEED, max_update='40', lr=[LR], tags={1: 2}), "
    "'task': {'_name': 'TASK', 'codistill_group': 0, 'codistill_num_groups': GROUPS}, "
    "'criterion': {'_name': 'cross_entropy'}, "
    "'job_logging_cfg': {'handlers': {'filename': 'DIR'}}}"
)


@dataclass
class Writer:
    """Writes a log as fairseq does."""

    prefix: str = PREFIX
    form: str = "json"
    lines: list[str] = field(default_factory=list)

    def start(self, seed=1, folder="here", lr="0.1", groups=1):
        text = SETTINGS.replace("SEED", str(seed)).replace("DIR", str(folder)).replace("LR", lr)
        task = "codistill_translation" if groups > 1 else "translation"
        text = text.replace("GROUPS", str(groups)).replace("TASK", task)
        self.lines.append(self.prefix.format("fairseq_cli.train") + text)
        return self

    def inner(self, update, **values):
        values = {**values, "num_updates": update}
        if self.form == "json":
            said = json.dumps({"epoch": 1, "update": 0.1} | {k: str(v) for k, v in values.items()})
        else:
            pairs = ", ".join(f"{key}={value}" for key, value in values.items())
            said = f"epoch 001:  {update:4} / 400 {pairs}"
        return self._say("train_inner", said)

    def valid(self, update, subset="valid", **values):
        values = {**values, "num_updates": update}
        if self.form == "json":
            named = {f"{subset}_{key}": str(value) for key, value in values.items()}
            return self._say(subset, json.dumps({"epoch": 1} | named))
        pairs = " | ".join(f"{key} {value}" for key, value in values.items())
        return self._say(subset, f"epoch 001 | valid on '{subset}' subset | {pairs}")

    def epoch(self, update, **values):
        values = {**values, "num_updates": update}
        if self.form == "json":
            named = {f"train_{key}": str(value) for key, value in values.items()}
            return self._say("train", json.dumps({"epoch": 1} | named))
        pairs = " | ".join(f"{key} {value}" for key, value in values.items())
        return self._say("train", f"epoch 001 | {pairs}")

    def _say(self, tag, said):
        self.lines.append(self.prefix.format(tag) + said)
        return self

    def log(self) -> logs.Log:
        log = logs.Log()
        log.read(self.lines)
        return log

    def to(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(self.lines) + "\n")
        return path


def write_run(folder: Path, seed: int, groups: int = 1, shift: float = 0.0, lr="0.1") -> Path:
    """A run of 40 updates; a launch's OUT if it has groups."""
    for group in range(groups):
        writer = Writer().start(seed + 1000003 * group, folder, lr, groups)
        for update in range(2, 41, 2):
            peers = {
                "codistill_alpha": 0.1 + update / 100,
                "codistill_peers": 1,
                "codistill_loss": 2 - update / 40,
                "codistill_staleness": update % 10 - 2,
                "codistill_stall": 0.02,
            }
            nll = 3 + shift + 5 * math.exp(-update / 10) + 0.1 * group + 0.01 * seed
            own = peers if groups > 1 else {}
            writer.inner(update, loss=nll + 0.5, nll_loss=nll, wps=100, wall=update, **own)
            if update % 10 == 0:
                writer.valid(update, loss=nll + 1, nll_loss=nll + 1)
        writer.to(folder / f"group-{group}" / "log.txt" if groups > 1 else folder / "log.txt")
    return folder


def write_scores(run: Path, models: list[float], ensemble: float, beam: str = "5") -> Path:
    """What evaluate.sh leaves of a run."""
    rows = {f"model {i}": value for i, value in enumerate(models)}
    rows |= {"ensemble": ensemble, "weight average": 1.0}
    scores = {name: {"sacrebleu": bleu, "compound_split_bleu": None} for name, bleu in rows.items()}
    said = {"beam": beam, "subset": "test", "sentences": 7, "sacrebleu_signature": "nrefs:1|x"}
    path = run / "evaluation" / "scores.json"
    path.parent.mkdir()
    path.write_text(json.dumps(said | {"scores": scores}))
    return path


def report(capsys, *arguments: object) -> str:
    assert cli.main(["report", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refusal(capsys, *arguments: object) -> str:
    assert cli.main(["report", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("codistill: error: ")
    assert said.count("\n") == 1
    return said
