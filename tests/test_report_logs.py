"""`codistill report`: logs that are long, damaged or made by somebody else cost a note at most."""

import json
import math
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from written_records import write_record
from written_runs import PREFIX, Writer, refusal, report, write_run, write_scores

from fairseq_codistill.report import (
    document,
    figures,
    labels,
    logs,
    origin,
    plots,
    runs,
    series,
    thinning,
)

GOOD = {"loss": 5, "nll_loss": 4}


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures, which take most of the time."""
    monkeypatch.setattr(plots, "missing", lambda: "Nothing is drawn.")


# --- damage ----------------------------------------------------------------------------------


ODD = {
    "NaN": '{"epoch": 1, "loss": NaN, "num_updates": NaN}',
    "nan": '{"epoch": 1, "loss": "3", "num_updates": "nan"}',
    "Infinity": '{"epoch": 1, "loss": "3", "num_updates": Infinity}',
    "text inf": '{"epoch": 1, "loss": "3", "num_updates": "inf"}',
    "negative": '{"epoch": 1, "loss": "3", "num_updates": "-3"}',
    "digits": '{"epoch": 1, "loss": "3", "num_updates": ' + "9" * 5000 + "}",
    "digits of a text": '{"epoch": 1, "loss": "3", "num_updates": "' + "9" * 5000 + '"}',
    "400 digits": '{"epoch": 1, "loss": ' + "9" * 400 + ', "num_updates": "3"}',
    "deep": '{"num_updates": ' + "[" * 100_000,
    "deep objects": '{"num_updates": {"a":' * 50_000,
    "simple": "epoch 001: 1 / 2 loss=3, num_updates=1e999",
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD.keys())
def test_a_line_that_cannot_be_read_costs_a_note(undrawn, tmp_path, capsys, line):
    writer = Writer().start().inner(2, **GOOD)
    writer.lines.append(PREFIX.format("train_inner") + line)
    writer.inner(4, **GOOD).valid(4, **GOOD).to(tmp_path / "a" / "log.txt")
    write_run(tmp_path / "b", 1)
    said = report(capsys, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--json")
    assert "log.txt: 1 line could not be read and are left out." in said
    curves = json.loads((tmp_path / "out/report.json").read_text())["labels"][0]["models"][0]
    assert curves["curves"]["train_loss"] == {"updates": [2, 4], "values": [5, 5]}


HUGE = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "9.9e99", "-9.9e99", "0", "1e-320"]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("quoted", [False, True])
def test_any_number_can_be_reported(tmp_path, capsys, number, quoted):
    names = sorted(thinning.SHOWN)
    value = json.dumps(number) if quoted else number
    for group in (0, 1):
        writer = Writer().start(seed=1 + group, groups=2)
        for update in range(2, 20, 2):
            # Ordinary, this number, and its opposite: what is added up may overflow.
            said = value if update % 3 else "3"
            pairs = ", ".join(f'"{name}": {said}' for name in names)
            writer._say("train_inner", f'{{{pairs}, "num_updates": "{update}"}}')
            pairs = ", ".join(f'"valid_{name}": {said}' for name in names)
            writer._say("valid", f'{{{pairs}, "valid_num_updates": "{update}"}}')
        writer.inner(20, **dict.fromkeys(names, "-inf" if group else "inf"))
        writer.to(tmp_path / "run" / f"group-{group}" / "log.txt")
    other = write_run(tmp_path / "other", 1)
    said = report(capsys, tmp_path / "run", other, "--out", tmp_path / "out", "--json", "--html")
    assert "other: best validation NLL" in said
    json.loads((tmp_path / "out/report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("update", [0, 2**53])
def test_any_update_can_be_reported(tmp_path, capsys, update):
    log = Writer().inner(update, **GOOD).valid(update, **GOOD).to(tmp_path / "a.log")
    said = report(capsys, log, "--out", tmp_path / "out")
    assert f"at update {update:,}" in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "line",
    [
        "num_updates " + "a" * 1_000_000,
        "epoch 001: num_updates=3 " + "a1=" * 300_000,
        '{"num_updates": "3", ' + ", ".join(f'"k{i}": "1"' for i in range(50_000)) + "}",
        "codistill.launch " + " | " * 300_000,
        "{'_name': None, 'common': {" + "[" * 500_000,
        "{'_name': None, 'common': {'seed': " + "-" * 100_000 + "1}}",
        "{'_name': None, 'common': {'seed': 0x" + "f" * 20_000 + "}}",
        "{'_name': None, 'common': {'seed': " + "9" * 4000 + "}}",
        "{'_name': None, 'common': {'seed': [" + "1," * 400_000 + "]}}",
        "num_updates " + "x" * 5_000_000,
    ],
    ids=range(10),
)
def test_a_long_line_takes_no_time(tmp_path, line):
    writer = Writer().inner(2, **GOOD)
    writer.lines += [line, PREFIX.format("x") + line]
    run = runs.find(str(writer.inner(4, **GOOD).to(tmp_path / "log.txt")))
    assert [line.update for line in run.models[0].log.inner][-1] == 4
    assert run.models[0].seed is None


def test_lines_of_any_size_are_kept_small(tmp_path):
    names = {f"k{i:060}": "1" for i in range(3000)}
    log = Writer().inner(2, **names, **GOOD, wps=7).inner(4, **GOOD, **{"x" * 5000: "1"}).log()
    assert [line.values for line in log.inner] == [
        {"loss": 5, "nll_loss": 4, "wps": 7},
        {"loss": 5, "nll_loss": 4},
    ]


def test_a_carriage_return_ends_a_line_as_python_has_it(tmp_path):
    text = "\n".join(Writer().inner(2, **GOOD).inner(4, **GOOD).lines)
    for end in ("\r", "\r\n"):
        path = tmp_path / "log.txt"
        path.write_bytes(text.replace("\n", end).encode() + b"\r 10 %|###   \r")
        assert [line.update for line in logs.read(path).inner] == [2, 4]


def test_a_last_line_without_an_end_is_read(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("\n".join(Writer().inner(2, **GOOD).inner(4, **GOOD).lines))
    assert [line.update for line in logs.read(path).inner] == [2, 4]


# --- what is no log --------------------------------------------------------------------------


def put_fifo(path: Path):
    os.mkfifo(path)


def put_device(path: Path):
    path.symlink_to("/dev/zero")


def put_folder(path: Path):
    path.mkdir()


def put_loop(path: Path):
    path.symlink_to(path)


def put_nowhere(path: Path):
    path.symlink_to(path.parent / "nothing")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", [put_fifo, put_device, put_folder, put_loop, put_nowhere])
def test_what_is_no_file_in_the_place_of_a_log(undrawn, tmp_path, capsys, put):
    out = write_run(tmp_path / "run", 1, groups=2)
    (out / "group-1" / "log.txt").unlink()
    put(out / "group-1" / "log.txt")
    said = report(capsys, out, "--out", tmp_path / "out")
    assert f"note: {out}: group 1 is left out: {out}/group-1/log.txt cannot be read" in said
    put(tmp_path / "train.log")
    refusal(capsys, tmp_path / "train.log")
    (tmp_path / "plain").mkdir()
    put(tmp_path / "plain" / "train.log")
    assert "cannot be read" in refusal(capsys, tmp_path / "plain")


def test_a_log_may_be_a_link(tmp_path):
    log = Writer().inner(2, **GOOD).to(tmp_path / "elsewhere")
    (tmp_path / "log.txt").symlink_to(log)
    assert runs.find(str(tmp_path)).models[0].log.inner[0].update == 2


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "log.txt/beyond"])
def test_a_name_that_cannot_be(tmp_path, capsys, name):
    Writer().inner(2, **GOOD).to(tmp_path / "log.txt")
    refusal(capsys, tmp_path / name)
    refusal(capsys, "--as", str(tmp_path / name), tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("put", [put_fifo, put_device, put_folder, put_loop])
@pytest.mark.parametrize("name", ["evaluation/scores.json", "agreement.jsonl"])
def test_what_is_no_file_beside_the_logs(undrawn, tmp_path, capsys, put, name):
    out = write_run(tmp_path / "run", 1, groups=2)
    (out / name).parent.mkdir(exist_ok=True)
    put(out / name)
    said = report(capsys, out, "--out", tmp_path / "out")
    assert f"note: {out}/{name} is not what" in said


BROKEN = [
    *(b"\xff", b"[1]", b"3", b"{", b"{}", b"\x00" * 100, b'{"a":' * 100_000),
    *(b'{"scores": {"model 0": {"sacrebleu": NaN}}}', b'{"scores": [[]]}', b'{"scores": null}'),
    *(b'{"scores": {"model 0": {"sacrebleu": 1e999}}}', b'{"scores": {"model 0": 3}}'),
    b'{"scores": {"model 0": {"sacrebleu": ' + b"9" * 5000 + b"}}}",
    *(
        b'{"scores": {"model 0": {"sacrebleu": "3"}}}',
        b'{"scores": {"model 0": {"sacrebleu": -1}}}',
    ),
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_scores_that_are_none(undrawn, tmp_path, capsys, data):
    out = write_run(tmp_path / "run", 1, groups=2)
    path = write_scores(out, [1.0], 2.0)
    path.write_bytes(data)
    said = report(capsys, out, "--out", tmp_path / "out", "--json")
    assert f"note: {path} is not what evaluate.sh writes, and is left out" in said


def test_odd_conditions_of_scores_are_cut(undrawn, tmp_path, capsys):
    out = write_run(tmp_path / "run", 1, groups=2)
    path = write_scores(out, [1.0], 2.0)
    said = json.loads(path.read_text()) | {"beam": ["\x1b[2J" * 1000], "subset": {"a": [None]}}
    path.write_text(json.dumps(said))
    report(capsys, out, "--out", tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "\x1b" not in text
    assert len(text) < 10_000


UPDATES = ["[1.5, 1.5]", '["a", "a"]', "[NaN, NaN]", "[true, true]", "[-1, -1]", "[[1], [1]]", "3"]


@pytest.mark.parametrize("updates", [*UPDATES, "[" + "9" * 5000 + "]"], ids=range(8))
def test_agreements_that_are_none(undrawn, tmp_path, capsys, updates):
    out = write_run(tmp_path / "run", 1, groups=2)
    line = f'{{"agreement": 0.5, "groups": [0, 1], "updates": {updates}}}'
    (out / "agreement.jsonl").write_text(line)
    said = report(capsys, out, "--out", tmp_path / "out", "--json")
    assert f"note: {out}/agreement.jsonl is not what vision.diagnostics writes" in said


@pytest.mark.parametrize("share", ["NaN", '"0.5"', "null", "[0.5]", "true", "1e999", "-0.1"])
def test_shares_that_are_none(undrawn, tmp_path, capsys, share):
    out = write_run(tmp_path / "run", 1, groups=2)
    line = f'{{"agreement": {share}, "groups": [0, 1], "updates": [3, 3]}}'
    (out / "agreement.jsonl").write_text(line)
    said = report(capsys, out, "--out", tmp_path / "out", "--json")
    assert f"note: {out}/agreement.jsonl is not what vision.diagnostics writes" in said


# --- launch.json -----------------------------------------------------------------------------


LAUNCH = {
    "format": 1,
    "run_id": "r",
    "nonces": [],
    "groups": [[], []],
    "command": ["fairseq-train", "x"],
    "options": ["--groups", "2"],
    "versions": {"torch": "2"},
    "git_commit": None,
}
ODD_FIELDS = [
    *[("groups", value) for value in (3, None, "ab", {"a": 1}, [[]] * 5000)],
    *[("run_id", value) for value in (3, [], {"a": 1}, "x" * 300, "\ud800")],
    *[("git_commit", value) for value in (3, ["a"], {}, "x" * 300)],
    *[("command", value) for value in (3, None, "ab", [3], [["a"]], {}, ["x" * 200_000])],
    *[("options", value) for value in (3, None, "ab", [3], [["a"]], {})],
    *[("versions", value) for value in (3, None, "ab", [3], {"a": 3}, {"a": {}})],
]


@pytest.mark.parametrize(("name", "value"), ODD_FIELDS)
def test_an_odd_field_of_launch_json_costs_a_note(undrawn, tmp_path, capsys, name, value):
    out = write_run(tmp_path / "run", 1, groups=2)
    write_record(out, **{name: value})
    said = report(capsys, out, "--out", tmp_path / "out", "--json", "--html")
    (note,) = (line for line in said.splitlines() if f"{out}/launch.json" in line)
    assert name in note
    assert "left out" in note
    assert "run: 2 models, best validation NLL" in said


@pytest.mark.parametrize("name", [name for name in LAUNCH if name != "format"])
def test_a_field_that_launch_json_lacks_costs_nothing(undrawn, tmp_path, capsys, name):
    out = write_run(tmp_path / "run", 1, groups=2)
    written = {key: value for key, value in LAUNCH.items() if key != name}
    (out / "launch.json").write_text(json.dumps(written))
    said = report(capsys, out, "--out", tmp_path / "out", "--json", "--html")
    assert "run: 2 models, best validation NLL" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"3", b'{"format": 7}', b'{"a":' * 100_000])
def test_a_launch_json_that_is_none_costs_a_note(undrawn, tmp_path, capsys, data):
    out = write_run(tmp_path / "run", 1, groups=2)
    (out / "launch.json").write_bytes(data)
    said = report(capsys, out, "--out", tmp_path / "out")
    assert f"note: {out}/launch.json cannot be used and is left out" in said
    assert "run: 2 models, best validation NLL" in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize("word", ["a" * 90_000, "/" * 90_000, "a+" * 45_000, "file:" * 18_000])
def test_a_long_word_of_a_command_is_shortened_in_linear_time(word):
    assert len(origin.shortened([word])) == 1


# --- what is printed -------------------------------------------------------------------------

ESCAPE = "\x1b[31m\nnote: forged"


def test_nothing_that_is_printed_has_control_characters(tmp_path, capsys):
    out = write_run(tmp_path / "a", 1, groups=2).rename(tmp_path / f"a{ESCAPE}\udcff")
    (out / "group-1" / "log.txt").write_text("nothing\n")
    words = ["fairseq-train", ESCAPE]
    launch = LAUNCH | {"command": words, "options": words, "versions": {ESCAPE: ESCAPE}}
    (out / "launch.json").write_text(json.dumps(launch | {"run_id": f"r{ESCAPE}"}))
    scores = write_scores(out, [1.0], 2.0)
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"sacrebleu_signature": ESCAPE}))
    arguments = [out, "--as", f"b{ESCAPE}", write_run(tmp_path / "b", 2, lr=f"'{ESCAPE!r}'")]
    said = report(capsys, *arguments, "--out", tmp_path / "out", "--html", "--json")
    for text in (said, *((tmp_path / f"out/report.{end}").read_text() for end in ("md", "html"))):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert "\nnote: forged" not in text
    assert "\nnote: forged" not in refusal(capsys, tmp_path / f"x{ESCAPE}")
    assert "\x1b" not in refusal(capsys, "--as", ESCAPE)


def test_a_terminal_that_has_few_letters(tmp_path):
    run = write_run(tmp_path / "ümlaut", 1)
    code = "import sys; from fairseq_codistill import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", "--as", "α", str(run), "--out", "out"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\u03b1: best validation NLL")


# --- long logs -------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Log lines are merged from 100 on, so that a test may be short."""
    monkeypatch.setattr(thinning, "MOST", 100)
    monkeypatch.setattr(logs, "MOST", 100)
    monkeypatch.setattr(thinning, "RECENT", 10)
    monkeypatch.setattr(thinning.thin, "__defaults__", (10, False))


def random_log(lines: int, seed: int, back: float = 0.0) -> Writer:
    """A log with peers now and then, a clock that starts again, and restarts."""
    rng = random.Random(seed)
    writer, update, wall = Writer().start(groups=2), 0, 0.0
    for _ in range(lines):
        update += rng.randint(1, 3)
        wall = 0.5 if rng.random() < 0.01 else wall + rng.random()
        values = {"loss": rng.gauss(5, 1), "nll_loss": rng.gauss(4, 1), "wall": wall}
        values |= {"wps": rng.gauss(100, 10)}
        if rng.random() < 0.7:
            values |= {"codistill_staleness": rng.gauss(0, 9), "codistill_stall": rng.random()}
            values |= {"codistill_alpha": rng.random(), "codistill_peers": 1}
        writer.inner(update, **values)
        if rng.random() < 0.6:
            writer.valid(update, nll_loss=rng.gauss(4, 1), top1=rng.gauss(50, 10))
        if rng.random() < back:
            update -= rng.randint(0, 8)
    # The newest line tells all, as those of training do.
    return writer.inner(update + 1, codistill_alpha=0.25, wall=wall + 1).valid(
        update + 1, nll_loss=9, top1=3
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("back", [0.0, 0.02])
@pytest.mark.parametrize("lines", [99, 150, 1000, 5000])
def test_the_figures_of_a_long_log_are_those_of_every_line(small, monkeypatch, lines, back, seed):
    writer = random_log(lines, seed, back)
    found = writer.log()
    assert len(found.inner) <= 100
    assert len(found.valid) <= 100
    monkeypatch.setattr(logs, "MOST", 10**9)
    every = writer.log()
    assert sum(line.lines for line in found.inner) == len(every.inner)
    assert sum(line.lines for line in found.valid) == len(every.valid)
    measured, exact = (
        {name: value for name, value in vars(figures.measure(log)).items() if value is not None}
        for log in (found, every)
    )
    # The rate is of a sample: within the middle of all lines' rates.
    rates = statistics.quantiles([line.values.get("wps", 100) for line in every.inner], n=10)
    assert rates[1] < measured.pop("words_per_second") < rates[7]
    del exact["words_per_second"]
    assert measured == pytest.approx(exact, rel=1e-9)


def test_a_merged_line_is_the_mean_of_its_lines(small):
    writer = Writer()
    for update in range(1, 1001):
        values = {"codistill_loss": update} if update % 4 == 0 else {}
        writer.inner(update, loss="nan" if update == 500 else update, **values)
    log = writer.log()
    assert log.inner[-1].lines == 1
    assert {line.lines for line in log.inner[:-2]} == {64}
    begin = 0
    for line in log.inner:
        end = begin + line.lines
        assert line.update == end
        losses = [update for update in range(begin + 1, end + 1) if update != 500]
        assert line.values["loss"] == pytest.approx(statistics.fmean(losses))
        divergences = [update for update in range(begin + 1, end + 1) if update % 4 == 0]
        if divergences:
            assert line.values["codistill_loss"] == statistics.fmean(divergences)
        begin = end
    assert [line.not_finite for line in log.inner if line.not_finite] == [500]
    assert len(series.curve(log, "train_loss")) == len(log.inner)


def test_what_is_never_finite_stays_so(small):
    writer = Writer()
    for update in range(1, 1001):
        writer.inner(update, loss="nan", codistill_staleness="inf")
    log = writer.log()
    assert all(math.isnan(line.values["loss"]) for line in log.inner)
    assert figures.measure(log).staleness == math.inf
    assert next(line.not_finite for line in log.inner) == 1


def test_a_restart_from_far_back_drops_what_was_beyond(small):
    writer = Writer()
    for update in range(1, 1001):
        writer.inner(update, loss=1, wall=update)
    for update in range(300, 401):
        writer.inner(update, loss=2, wall=update)
    log = writer.log()
    assert log.restarts == 1
    assert log.inner[-1].update == 400
    updates = [line.update for line in log.inner]
    assert updates == sorted(set(updates))
    # A merged line that reached beyond update 300 is dropped as a whole: 64 lines each by then.
    first = sum(line.lines for line in log.inner if line.values["loss"] < 1.5)
    assert 299 - 64 < first <= 299
    assert sum(line.lines for line in log.inner) == first + 101
    again = writer.inner(1, loss=3, wall=1).log()
    assert [(line.update, line.values["loss"]) for line in again.inner] == [(1, 3)]


def test_nothing_is_merged_below_the_bound(tmp_path):
    writer = Writer()
    for update in range(1, thinning.MOST + 1):
        writer.lines.append(f'{{"loss": "{update}", "num_updates": "{update}"}}')
    log = writer.log()
    assert len(log.inner) == thinning.MOST
    assert all(line.merged is None for line in log.inner)
    assert len(writer.inner(thinning.MOST + 1, loss=1).log().inner) <= thinning.MOST // 4 + 2


def test_pictures_and_numbers_of_a_long_log_are_few(tmp_path, capsys):
    lines = 70_000
    for group in (0, 1):
        writer = Writer().start(seed=1 + group, groups=2)
        for update in range(1, lines + 1):
            said = f'"codistill_staleness": "{update}", "codistill_peers": "1", "loss": "{update}"'
            # At other updates than the other group's.
            writer.lines.append(f'{{{said}, "num_updates": "{2 * update + group}"}}')
        writer.to(tmp_path / "run" / f"group-{group}" / "log.txt")
    (label,) = labels.group([runs.find(str(tmp_path / "run"))], [])
    said = json.loads(document.as_json([label], []))
    for model in said["labels"][0]["models"]:
        updates = model["curves"]["staleness"]["updates"]
        assert len(updates) <= 5_002
        assert model["figures"]["staleness"] == pytest.approx((lines + 1) / 2)
        assert updates[-1] == 2 * lines + model["group"]


def test_the_band_of_many_curves_has_few_updates():
    rng = random.Random(1)
    curves = [
        series.curve_of([(update + rng.random(), 3.0) for update in range(9000)]) for _ in range(9)
    ]
    band = series.band(curves)
    assert len(band.updates) == thinning.MOST
    assert band.updates[0] == max(one.updates[0] for one in curves)
    assert band.updates[-1] == min(one.updates[-1] for one in curves)
    assert (band.mean == 3).all()


def test_a_long_log_needs_little_memory(tmp_path):
    """A hundred megabytes of lines, and of zeros, in a process that may have little."""
    path = tmp_path / "log.txt"
    with path.open("w") as log:
        for update in range(60_000):
            log.write(PREFIX.format("train_inner"))
            log.write(f'{{"loss": "3", "num_updates": "{update}", "x": "{"y" * 1500}"}}\n')
        log.truncate(200_000_000)
    code = (
        "import resource, sys, pathlib\n"
        "from fairseq_codistill.report import logs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "log = logs.read(pathlib.Path(sys.argv[1]))\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(log.inner[-1].update, log.torn, grown)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    last, torn, kilobytes = map(int, done.stdout.split())
    assert (last, torn) == (59_999, 1)
    assert kilobytes < 60_000
