"""`codistill report`: its tables, its pictures, and what it refuses."""

import dataclasses
import html
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from harness import keys
from matplotlib.image import imread
from written_runs import Writer, refusal, report, write_run, write_scores

from fairseq_codistill import cli
from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.report import (
    KEYS,
    compare,
    origin,
    plots,
    runs,
    settings,
)


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


def test_the_training_loss_is_per_sentence_if_it_is_divided_by_sentences(tmp_path, capsys):
    for name, average, lr in (("by-sentence", "True", "0.1"), ("by-token", "False", "0.2")):
        writer = Writer().start(lr=lr)
        writer.lines[0] = writer.lines[0].replace("'lr':", f"'sentence_avg': {average}, 'lr':")
        for update in (10, 20, 30):
            writer.inner(update, loss=50, nll_loss=4).valid(update, loss=50, nll_loss=4)
        writer.to(tmp_path / name / "log.txt")
    report(capsys, tmp_path / "by-sentence", "--out", tmp_path / "one")
    report(capsys, tmp_path / "by-sentence", tmp_path / "by-token", "--out", tmp_path / "both")
    one, both = ((tmp_path / name / "report.md").read_text() for name in ("one", "both"))
    assert "Training loss, bits per sentence, (cross-entropy" in one
    assert "Training NLL, bits per token (NLL" in one
    assert "Training loss, bits per token or sentence, (cross-entropy" in both


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
    said |= {"nonces": ["n", "m"], "time": "2026-01-01T00:00:00+00:00", "history": []}
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
