"""`codistill report`: what it reads from logs, the numbers it makes of them, its pictures."""

import dataclasses
import html
import io
import json
import math
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fairseq_codistill import cli
from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.report import (
    KEYS,
    compare,
    figures,
    labels,
    logs,
    origin,
    plots,
    runs,
    series,
    settings,
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


@pytest.mark.parametrize("form", ["json", "simple"])
@pytest.mark.parametrize("prefix", [PREFIX, HYDRA, ""])
def test_both_formats_with_each_prefix(form, prefix):
    writer = Writer(prefix, form).start(seed=7)
    writer.inner(20, loss=5.5, nll_loss="5e+00", codistill_staleness=-1.5, ppl="inf")
    writer.valid(23, loss=4.5, nll_loss=4.25, best_loss=4.5)
    writer.valid(23, subset="other", loss=9)
    writer.epoch(23, loss=5.25, train_wall=3)
    log = writer.log()
    assert log.inner == [
        logs.Line(
            20,
            log.inner[0].values
            | {"loss": 5.5, "nll_loss": 5.0, "codistill_staleness": -1.5, "ppl": math.inf},
        )
    ]
    assert log.valid == [
        logs.Line(23, log.valid[0].values | {"loss": 4.5, "nll_loss": 4.25, "best_loss": 4.5})
    ]
    assert log.epochs == [logs.Line(23, log.epochs[0].values | {"loss": 5.25, "train_wall": 3})]
    assert log.train is log.inner
    assert settings.parse(log.settings)["seed"] == "7"
    assert (log.restarts, log.torn) == (0, 0)


def test_what_is_no_line_of_numbers():
    writer = Writer()
    writer.lines += [
        "epoch 1 is about num_updates",
        PREFIX.format("train_inner") + '{"epoch": 3, "num_updates": "12", torn',
        PREFIX.format("x") + "num_updates=3, loss=3",
        PREFIX.format("x") + "[1, 2] num_updates",
        '{"num_updates": null, "loss": "3"}',
        "{'num_updates': 3}",
    ]
    log = writer.inner(4, loss=2, lr="None").log()
    assert [line.update for line in log.inner] == [4]
    assert "lr" not in log.inner[0].values
    assert log.torn == 2
    assert not log.valid


def test_a_restart_takes_the_place_of_what_it_repeats():
    writer = Writer().start()
    writer.inner(10, loss=9, wall=10).valid(15, loss=8).inner(20, loss=7, wall=20)
    writer.inner(25, loss=6, wall=25).valid(25, loss=6)
    # From the checkpoint of update 15: 20 comes again, 25 never does.
    writer.start().inner(20, loss=3, wall=18).inner(30, loss=2, wall=30)
    log = writer.log()
    assert [(line.update, line.values["loss"]) for line in log.inner] == [(10, 9), (20, 3), (30, 2)]
    assert [line.update for line in log.valid] == [15]
    assert log.restarts == 1
    assert figures.measure(log).seconds == 30


def test_the_same_update_again_counts_once():
    log = Writer().inner(10, loss=9).inner(10, loss=8).valid(10, loss=7).valid(10, loss=6).log()
    assert [line.values["loss"] for line in [*log.inner, *log.valid]] == [8, 6]
    assert log.restarts == 0


def test_restarts_by_launch_and_without_any_heading():
    writer = Writer()
    writer.lines += [PREFIX.format("codistill.launch") + "fairseq-train x"] * 3
    assert writer.log().restarts == 2
    assert Writer().inner(10, loss=1).inner(5, loss=1).inner(10, loss=1).log().restarts == 1


def test_the_numbers_of_a_model():
    writer = Writer().start()
    writer.inner(10, loss=9, wps=100, wall=4, codistill_alpha=0, codistill_stall=0)
    writer.valid(10, loss=7, nll_loss=3.5, top1=40)
    writer.inner(20, wps=300, wall=8, codistill_alpha=0.5, codistill_stall=1, codistill_staleness=4)
    writer.valid(20, loss=6, nll_loss=2.5, top1=62.5)
    writer.inner(30, wps=140, wall=10, codistill_alpha=1, codistill_stall=2, codistill_staleness=-1)
    writer.valid(33, loss=5, nll_loss=2.75, top1=61)
    assert figures.measure(writer.log()) == figures.Figures(
        best_nll=2.5,
        best_update=20,
        last_nll=2.75,
        best_top1=62.5,
        last_top1=61,
        updates=33,
        words_per_second=140,
        images_per_second=None,
        alpha=1,
        staleness=1.5,
        stall_share=0.3,
        seconds=10,
        restarts=0,
    )


def test_the_numbers_of_a_log_that_tells_little():
    one = figures.measure(Writer().epoch(5, loss=3).log())
    assert one.updates == 5
    assert {one.best_nll, one.last_nll, one.words_per_second, one.alpha, one.stall_share} == {None}
    # Without label smoothing fairseq's cross_entropy logs its NLL as loss alone.
    assert figures.measure(Writer().inner(1, loss=1).valid(5, loss=3).log()).best_nll == 3
    broken = figures.measure(Writer().inner(1, loss=1).valid(5, loss=3).valid(6, loss="nan").log())
    assert broken.best_nll == 3
    assert math.isnan(broken.last_nll)
    # The clock begins again if a run goes on with its meters reset.
    assert figures.measure(Writer().inner(1, wall=7).inner(2, wall=5).log()).seconds == 12


def test_the_spread_over_models():
    models = [
        figures.measure(Writer().inner(5, wps=w).valid(5, loss=x).log())
        for w, x in ((10, 2), (20, 3), (60, 7))
    ]
    spreads = figures.spreads(models)
    assert spreads["best_nll"] == figures.Spread(4, 2, 7)
    assert spreads["words_per_second"] == figures.Spread(30, 10, 60)
    assert spreads["alpha"] is None


def curve(*points):
    updates, values = zip(*points, strict=True)
    return series.Curve(np.array(updates, float), np.array(values, float))


def test_a_band_covers_what_all_curves_cover():
    band = series.band([curve((0, 0), (10, 10), (20, 30)), curve((5, 1), (15, 1))])
    assert band.updates.tolist() == [5, 10, 15]
    assert band.mean.tolist() == [3, 5.5, 10.5]
    assert band.low.tolist() == [1, 1, 1]
    assert band.high.tolist() == [5, 10, 20]
    assert (band.curves, band.measured) == (2, False)
    assert series.band([curve((0, 1), (5, 1)), curve((6, 1), (9, 1))]) is None
    assert series.band([]) is None
    assert series.band([curve((3, 1)), curve((3, 2))]).measured


def test_a_running_mean():
    one = curve((0, 0), (10, 3), (20, 6), (40, 0))
    assert series.smooth(one, 20).values.tolist() == [1.5, 3, 4.5, 0]
    assert series.smooth(one, 0).values.tolist() == one.values.tolist()


def test_what_is_not_finite_is_not_drawn():
    log = Writer().inner(1, loss="nan").inner(2, loss=3).inner(3, loss="inf").log()
    assert series.curve(log, "train_nll").updates.tolist() == [2]


def test_settings_are_data_and_told_apart():
    first = Writer().start(seed=1, folder="a").log().settings
    again = Writer().start(seed=2, folder="b").log().settings
    other = Writer().start(seed=1, folder="a", lr="0.2").log().settings
    first, again, other = map(settings.parse, (first, again, other))
    assert first["criterion"] == "'cross_entropy'"
    assert settings.alike(first, again)
    assert settings.difference([first, other]) == ["lr"]
    assert not settings.alike({}, {})
    assert settings.parse("{'a': __import__('os').abort()}") == {}
    for text in ("", "{'a': ", "{'a': <Choice.a: 1>}", "(" * 5000):
        assert settings.parse(text) == {}


def test_an_older_version_did_what_the_defaults_do_now():
    now = CodistillationConfig()
    for name, default in settings._LATER.items():
        assert str(getattr(now, name)) == default
    old = {"lr": "0.1", "codistill_interval": "50"}
    new = old | {"codistill_peer_dtype": "'student'", "codistill_peer_dropout": "False"}
    new |= {"codistill_every": "1", "codistill_head": "'auto'", "codistill_fused_ce": "False"}
    assert settings.alike(old, new)
    for name, value in (("codistill_every", "8"), ("codistill_peer_dropout", "True")):
        assert settings.difference([old, new | {name: value}]) == [name]
    assert "codistill_every" in settings.difference([{"lr": "0.1"}, new])


def test_seeds_share_a_line(tmp_path):
    folders = [
        write_run(tmp_path / name, seed, groups, lr=lr)
        for name, seed, groups, lr in (
            ("plain-seed11", 11, 1, "0.1"),
            ("both_1", 1, 2, "0.1"),
            ("plain-seed12", 12, 1, "0.1"),
            ("both_2", 2, 2, "0.1"),
            ("fast", 1, 1, "0.2"),
        )
    ]
    found = labels.group([runs.find(str(folder)) for folder in folders], [])
    assert [(label.name, len(label.models)) for label in found] == [
        ("plain", 2),
        ("both", 4),
        ("fast", 1),
    ]
    assert [label.codistilled for label in found] == [False, True, False]
    assert [model.seed for model in found[1].models] == [1, 1000004, 2, 1000005]
    assert labels.notes(found) == []
    given = labels.group([], [("mine", [runs.find(str(folders[i])) for i in (0, 4)])])
    assert [label.name for label in given] == ["mine"]
    assert labels.notes(given) == ["mine: its runs differ in more than the seed: lr."]


def test_names_are_as_long_as_they_must_be(tmp_path):
    for name, lr in (("x/run", "1"), ("y/run", "2"), ("t4", "3"), ("t41", "4")):
        write_run(tmp_path / name, 1, lr=lr)
    found = [str(tmp_path / name) for name in ("x/run", "y/run", "t4", "t41/log.txt")]
    names = [label.name for label in labels.group([runs.find(run) for run in found], [])]
    assert names == ["x/run", "y/run", "t4", "t41"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on three plain and two codistilled seeds, and what it said."""
    folder = tmp_path_factory.mktemp("report")
    plain = [write_run(folder / f"plain-{seed}", seed, shift=0.2) for seed in (1, 2, 3)]
    both = [write_run(folder / f"both-{seed}", seed, groups=2) for seed in (1, 2)]
    write_scores(both[0], [20.0, 21.0], 23.0)
    write_scores(both[1], [22.0, 24.0], 25.0)
    out = folder / "out"
    command = ["report", *plain, "--as", "both|<b>", *both, "--out", out, "--html", "--json"]
    assert cli.main([str(word) for word in command]) == 0
    return out


def test_the_files(written):
    pictures = {"valid_nll", "valid_nll_end", "train_nll", "train_loss"}
    pictures |= {"alpha", "codistill_loss", "staleness"}
    names = {f"{name}.png" for name in pictures} | {"report.md", "report.html", "report.json"}
    assert {path.name for path in written.iterdir()} == names


def test_the_table_has_the_numbers(written):
    text = (written / "report.md").read_text()
    rows = re.findall(r"^\| (plain|both\S*) +\| (.*) \|$", text, re.M)
    cells = {name: [cell.strip() for cell in row.split("|")] for name, row in rows[:2]}
    # Of the last update, 40: nll = 3 + shift + 5 exp(-4) + 0.1 group + 0.01 seed, valid + 1.
    base = 4 + 5 * math.exp(-4)
    plain, both = cells["plain"], cells[r"both\|\<b\>"[: len("both")] + r"\|\<b\>"]
    assert plain[0] == "3"
    assert plain[1] == f"{base + 0.22:.3f} ({base + 0.21:.3f} to {base + 0.23:.3f})"
    assert plain[2:] == ["40", plain[1], "40", "100", "-", "-", "-", "0"]
    assert both[1] == f"{base + 0.065:.3f} ({base + 0.01:.3f} to {base + 0.12:.3f})"
    # Staleness is -2, 0, 2, 4, 6 again and again; 20 lines of 0.02 s in 40 s.
    assert both[6:] == ["0.5", "2.0", "1 %", "0"]
    for picture in written.glob("*.png"):
        assert f"]({picture.name})" in text


def test_numbers_are_per_what_the_runs_count(written, tmp_path, capsys):
    text = (written / "report.md").read_text()
    assert "bits per token" in text
    assert "image" not in text
    speeds = {"pictures": {"images_per_second": 1234.4}, "words": {"wps": 77}}
    for name, more in (("pictures", {"top1": 50}), ("words", {})):
        # Of other settings, so that each has a line of its own.
        writer, rate = Writer().start(lr="0.1" if more else "0.2"), speeds[name]
        for update in (10, 20, 30):
            writer.inner(update, loss=5, nll_loss=4, **rate)
            writer.valid(update, loss=5, nll_loss=4, **more)
        writer.to(tmp_path / name / "log.txt")
    report(capsys, tmp_path / "pictures", "--out", tmp_path / "images")
    report(capsys, tmp_path / "pictures", tmp_path / "words", "--out", tmp_path / "mixed")
    images, mixed = ((tmp_path / name / "report.md").read_text() for name in ("images", "mixed"))
    assert "NLL in bits per image (base 2), lower is better; images/s: median" in images
    assert rates(images, "images/s") == ["1,234"]
    assert "NLL in bits per token or image" in mixed
    assert rates(mixed, "words or images/s") == ["1,234", "77"]
    assert rates(text, "words/s")[:2] == ["100", "100"]


def rates(text: str, column: str) -> list[str]:
    """What the first table has in a column."""
    lines = text.split("\n\n")[1].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    place = rows[0].index(column)
    return [row[place] for row in rows[2:]]


def test_the_translations_have_a_table(written):
    text = (written / "report.md").read_text()
    row = re.search(r"^## Translations\n\n.*\n.*\n\|(.*)\|\n\n(.*)$", text, re.M)
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row[1])]
    assert cells[1:] == [
        *["2", "21.75 (20.00 to 24.00)", "24.00 (23.00 to 25.00)", "1.00"],
    ]
    assert "subset test; sentences 7; beam 5; nrefs:1\\|x." in row[2]


def test_the_gap_has_the_error_of_its_runs(written):
    text = (written / "report.md").read_text()
    row = re.search(r"^## Against plain\n\n.*\n.*\n\|(.*)\|$", text, re.M)
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row[1])]
    # Runs of 0.21, 0.22, 0.23 against runs of two groups each, in the mean 0.06 and 0.07.
    error = math.sqrt(0.0001 / 3 + 0.00005 / 2)
    assert cells[1:] == [f"-0.155 ± {error:.3f}"] * 2


def test_scores_under_other_conditions_and_broken_ones(tmp_path, capsys):
    one, other, broken = (write_run(tmp_path / name, 1, groups=2) for name in "abc")
    write_scores(one, [10.0, 12.0], 13.0)
    write_scores(other, [11.0, 15.0], 13.0, beam="1")
    path = write_scores(broken, [9.0], 9.0)
    path.write_text(path.read_text().replace("sacrebleu", "bleu"))
    said = report(
        capsys, "--as", "a", one, "--as", "b", other, "--as", "c", broken, "--out", tmp_path
    )
    assert f"note: {path} is not what evaluate.sh writes, and is left out" in said
    text = (tmp_path / "report.md").read_text()
    assert "beam" not in text.split("## Translations")[1].split("##")[0]
    gaps = dict(re.findall(r"^\| (b|c) .*\| +(\S+) \|$", text.split("## Against a")[1], re.M)[:2])
    assert gaps == {"b": "+2.00", "c": "-"}


@pytest.mark.parametrize(
    ("word", "short"),
    [
        ("/root/runs/data-bin", "data-bin"),
        ("/root/runs/data-bin/", "data-bin"),
        ("//root/x", "x"),
        ("--data=/root/x", "--data=x"),
        ("task.data='/root/x'", "task.data='x'"),
        ("/a/b.pt:/c/d.pt", "b.pt:d.pt"),
        ("file:///root/x", "x"),
        ("[/root/x,/root/y]", "[x,y]"),
        ("1: --data /root/x --lr 3", "1: --data x --lr 3"),
        # These name no place of the machine.
        *(
            (word, word)
            for word in ("s3://bucket/run", "data/x", "../x", "./x", "/", "(0.9, 0.98)")
        ),
        ("s3://bucket/run:/root/x", "s3://bucket/run:x"),
        ("1/4", "1/4"),
    ],
)
def test_no_absolute_path_stays_in_a_command(word, short):
    assert origin.shortened([word]) == [short]


def write_launch(run: Path, command: list[str], torch: str, options: list[str] | None) -> None:
    said = {"format": 1, "run_id": "r", "groups": [[], []], "command": command}
    said |= {} if options is None else {"options": options}
    (run / "launch.json").write_text(json.dumps(said | {"versions": {"torch": torch, "x": None}}))


def test_the_report_says_how_the_runs_were_made(tmp_path, capsys):
    new = [write_run(tmp_path / f"new-{seed}", seed, groups=2) for seed in (1, 2)]
    old = write_run(tmp_path / "old", 1, groups=2)
    plain = write_run(tmp_path / "plain", 1)
    command = ["fairseq-train", str(tmp_path / "corpus/bin"), "--adam-betas", "(0.9, 0.98)", "`*_"]
    options = ["--groups", "2", "--group", f"1: --data {tmp_path}/other"]
    write_launch(new[0], command, "2.9", options)
    write_launch(new[1], ["second"], "2.9", options)
    write_launch(old, command, "2.8", None)
    out = tmp_path / "out"
    labelled = ["--as", "new<b>", *new, "--as", "old", old, "--as", "plain", plain]
    report(capsys, *labelled, "--out", out, "--json", "--html")
    section = (out / "report.md").read_text().split("## How these were made\n\n")[1]
    shown = "-- fairseq-train bin --adam-betas '(0.9, 0.98)' '`*_'"
    code, caption = section.rstrip("\n").split("\n\n")
    first = f"codistill launch --groups 2 --group '1: --data other' {shown}"
    second = f"codistill launch --groups 2 ... {shown}"
    lines = ["# new<b>", first, "# old", second]
    assert code.splitlines() == [f"    {line}" for line in lines]
    assert caption.endswith(r"Versions: torch 2.9, x None (new\<b\>); torch 2.8, x None (old).")
    page = (out / "report.html").read_text()
    assert f"<pre>{html.escape(chr(10).join(lines))}</pre>" in page
    new_label, old_label, plain_label = json.loads((out / "report.json").read_text())["labels"]
    versions = {"torch": "2.9", "x": None}
    assert new_label["runs"] == [
        {"run": str(new[0]), "command": first, "versions": versions},
        {"run": str(new[1]), "command": new_label["runs"][1]["command"], "versions": versions},
    ]
    assert old_label["runs"][0]["command"] == second
    assert plain_label["runs"] == []


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


def test_a_gap_without_numbers_is_none():
    assert compare.gap([], [1.0]) is None
    assert compare.gap([math.nan], [1.0]) is None
    assert compare.gap([3.0], [1.0, 2.0]) == compare.Gap(1.5, None)


def test_the_pictures_show_something(written):
    for path in written.glob("*.png"):
        pixels = imread(io.BytesIO(path.read_bytes()))[:, :, :3]
        height, width = pixels.shape[:2]
        assert 900 < width < 1800, path
        assert height > 300, path
        kinds = plots.COLOURS[1:2] if path.stem in PEERS else plots.COLOURS[:2]
        for colour in kinds:
            red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
            near = np.abs(pixels - (red, green, blue)).max(axis=2) < 0.03
            # The line itself, and not only its sample beside the name.
            assert near[:, : width // 2].sum() > 100, (path, colour)
        assert (pixels.min(axis=2) < 0.95).mean() < 0.5, path


PEERS = {"alpha", "codistill_loss", "staleness"}


class Page(HTMLParser):
    """Collects what a page refers to, and whether its elements are closed."""

    def __init__(self):
        super().__init__()
        self.refers, self.tags, self.open, self.alt = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset", "action", "data"):
                self.refers.append(value)
            if key == "alt":
                self.alt.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(written):
    text = (written / "report.html").read_text()
    assert "http" not in text
    assert "url(" not in text
    assert "both|&lt;b&gt;" in text
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "b"}
    assert len(page.refers) == len(page.alt) == 7
    assert all(refers.startswith("data:image/png;base64,iVBOR") for refers in page.refers)
    assert all("against updates" in alt for alt in page.alt)


def test_the_raw_numbers(written):
    document = json.loads((written / "report.json").read_text())
    plain, both = document["labels"]
    assert (plain["label"], both["label"]) == ("plain", "both|<b>")
    assert (plain["codistilled"], both["codistilled"]) == (False, True)
    assert [model["seed"] for model in both["models"]] == [1, 1000004, 2, 1000005]
    assert plain["spreads"]["alpha"] is None
    assert both["spreads"]["alpha"]["max"] == 0.5
    assert both["models"][0]["curves"]["valid_nll"]["updates"] == [10, 20, 30, 40]
    assert plain["models"][0]["curves"]["alpha"] == {"updates": [], "values": []}

    def keys(value):
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    for key in keys(document):
        assert re.search(rf"\b{key}\b", KEYS), key


def test_what_it_prints(tmp_path, capsys):
    run = write_run(tmp_path / "a", 1)
    said = report(capsys, run, "--out", tmp_path / "out")
    best = 4 + 5 * math.exp(-4) + 0.01
    assert said.splitlines() == [
        f"a: best validation NLL {best:.3f} at update 40",
        "note: No run here has peers, so there is no picture of alpha, D and staleness.",
        f"written to {tmp_path}/out: report.md, valid_nll.png, valid_nll_end.png, train_nll.png, "
        "train_loss.png",
    ]


def test_twelve_lines_keep_apart():
    places = plots.spread_out([0.5] * 6 + [0.52] * 3 + [0.0, 0.01, 1.0], 0.05, 0.02, 0.98)
    ordered = sorted(places)
    assert all(b - a > 0.0499 for a, b in zip(ordered, ordered[1:], strict=False))
    assert ordered[0] >= 0.02
    assert ordered[-1] <= 0.98
    assert places[11] == ordered[-1]
    looks = {(plots.COLOURS[i % 7], plots.MARKS[i // 7]) for i in range(12)}
    assert len(looks) == 12


def test_odd_logs_still_make_a_report(tmp_path, capsys):
    Writer().epoch(5, loss=3).to(tmp_path / "epochs.log")
    Writer().inner(5, loss="nan").valid(5, loss="nan").to(tmp_path / "nan.log")
    Writer().inner(5, loss=1).to(tmp_path / "one $\\frac$ _a_.log")
    names = ["epochs.log", "nan.log", "one $\\frac$ _a_.log"]
    out = tmp_path / "out"
    said = report(capsys, *(tmp_path / name for name in names), "--out", out, "--json", "--html")
    assert "epochs.log: no line within an epoch" in said
    assert "nan.log: a loss that is not finite, first at update 5" in said
    assert "epochs: no validation in 5 updates" in said
    document = json.loads((out / "report.json").read_text())
    assert document["labels"][1]["models"][0]["figures"]["last_nll"] is None


def test_groups_that_are_missing_or_behind(tmp_path, capsys):
    out = write_run(tmp_path / "out", 1, groups=3)
    (out / "group-1" / "log.txt").write_text("nothing yet\n")
    log = out / "group-2" / "log.txt"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:15]))
    said = report(capsys, out, "--out", tmp_path / "r")
    assert "out: 2 models, best validation NLL" in said
    assert "note: out: its models have come to different updates; its line ends at 24" in said
    assert f"group 1 is left out: {out}/group-1/log.txt has no line of training" in said


def test_models_that_share_no_update_are_told(tmp_path, capsys):
    first = Writer().inner(1, loss=1).inner(2, loss=1).to(tmp_path / "a.log")
    second = Writer().inner(8, loss=1).inner(9, loss=1).to(tmp_path / "b.log")
    said = refusal(capsys, "--as", "x", first, second, "--out", tmp_path / "r")
    assert "the models of x have no update in common (1 to 2, 8 to 9)" in said
    assert not (tmp_path / "r").exists()


def test_what_is_no_run(tmp_path, capsys):
    assert "is not there" in refusal(capsys, tmp_path / "nothing")
    assert "has no log" in refusal(capsys, tmp_path)
    (tmp_path / "train.log").write_bytes(bytes(range(256)) * 50)
    assert "no line of training" in refusal(capsys, tmp_path / "train.log")
    assert "no line of training" in refusal(capsys, tmp_path)
    (tmp_path / "train.log").unlink()
    (tmp_path / "train.log").mkdir()
    assert "cannot be read" in refusal(capsys, tmp_path)


def test_a_folder_with_several_logs(tmp_path, capsys):
    Writer().inner(1, loss=1).to(tmp_path / "a.out")
    (tmp_path / "preprocess.log").write_text("no training\n")
    assert runs.find(str(tmp_path)).models[0].path.name == "a.out"
    Writer().inner(1, loss=1).to(tmp_path / "b.log")
    assert "several logs (a.out, b.log)" in refusal(capsys, tmp_path)
    Writer().inner(1, loss=1).to(tmp_path / "log.txt")
    assert runs.find(str(tmp_path)).models[0].path.name == "log.txt"


def test_wrong_arguments(tmp_path, capsys):
    run = write_run(tmp_path / "a", 1)
    assert "nothing to report on" in refusal(capsys)
    assert "names no run" in refusal(capsys, "--as", "x")
    assert "looks like a run" in refusal(capsys, "--as", run, run)
    assert "only once" in refusal(capsys, run, "--as", "again", run / "log.txt")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(capsys, run, "--out", tmp_path / "file")


def test_without_matplotlib_all_but_the_plots_is_written(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "a", 1, groups=2)
    report(capsys, run, "--out", tmp_path / "with", "--json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = report(capsys, run, "--out", tmp_path / "out", "--json", "--html")
    (note,) = [line for line in said.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: The plots are left out, because matplotlib is not installed; pip")
    assert "fairseq-codistill[report]" in note
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.md", "report.html", "report.json"}
    text = (tmp_path / "out/report.md").read_text()
    table = (tmp_path / "with/report.md").read_text().split("\n\n")[1]
    assert table in text
    assert ".png" not in text
    page = (tmp_path / "out/report.html").read_text()
    assert "<img" not in page
    assert "The plots are left out" in page
    one, other = (
        json.loads((tmp_path / f"{out}/report.json").read_text()) for out in ("with", "out")
    )
    assert one["labels"] == other["labels"]


def test_logs_of_before_a_flag_are_those_of_its_default():
    """A flag that is new, and whose default is something, is to be known to ``settings``."""
    first = {  # Those of the first release; they stand in all logs.
        *("codistill_dir", "codistill_num_groups", "codistill_group", "codistill_run_id"),
        *("codistill_interval", "codistill_mode", "codistill_timeout", "codistill_max_staleness"),
        *("codistill_keep", "codistill_snapshot_dtype", "codistill_divergence"),
        *("codistill_temperature", "codistill_alpha", "codistill_alpha_schedule"),
        *("codistill_alpha_growth", "codistill_alpha_step", "codistill_alpha_milestones"),
        *("codistill_alpha_max", "codistill_burn_in"),
    }
    values = dataclasses.asdict(CodistillationConfig())
    now = {name: str(value) for name, value in values.items()}
    assert settings.difference([now, {name: now[name] for name in first}]) == []
