"""The live view: what it reads from logs, how it shows it."""

import io
import os
import tracemalloc

import pytest

from fairseq_codistill.launch.progress import LogReader, Progress, live_line
from fairseq_codistill.launch.view import LiveView

SIMPLE = """\
2026-01-01 00:00:00 | INFO | fairseq.trainer | begin training epoch 2
2026-01-01 00:00:01 | INFO | train_inner | epoch 002:      1 / 5 loss=5.376, nll_loss=4.3e+00, \
codistill_peers=1, codistill_staleness=-1.5, ppl=19, wps=1, num_updates=26, lr=1e-05, wall=4
2026-01-01 00:00:02 | INFO | valid | epoch 002 | valid on 'valid' subset | loss 4.94 | \
nll_loss 9 | ppl 30.69 | num_updates 27 | best_loss 4.5
"""
JSON = """\
[2026-01-01 00:00:00,123][train_inner][INFO] - {"epoch": 3, "update": 2.5, "loss": "5.1", \
"nll_loss": "4.2", "num_updates": "12"}
2026-01-01 00:00:02 | INFO | valid | {"epoch": 3, "valid_loss": "4.9", "valid_nll_loss": "9", \
"valid_num_updates": "13"}
2026-01-01 00:00:03 | INFO | train | {"epoch": 3, "train_loss": "5.0", "train_num_updates": "14"}
2026-01-01 00:00:03 | INFO | train_inner | {"epoch": 3, torn
"""


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def read(text):
    progress = Progress()
    for line in text.splitlines():
        progress.read_line(line)
    return progress


def test_simple():
    progress = read(SIMPLE)
    assert progress.values == {
        "epoch": "2",
        "num_updates": "27",
        "loss": "5.376",
        "nll_loss": "4.3e+00",
        "valid_loss": "4.94",
        "codistill_peers": "1",
        "codistill_staleness": "-1.5",
    }
    assert live_line("group 0", "running", 2, progress) == (
        "group 0: running    epoch 2  update 27  loss 5.376  nll 4.3e+00  valid 4.94  peers 1  "
        "staleness -1.5  restarts 2"
    )


def test_json():
    assert read(JSON).values == {
        "epoch": "3",
        "num_updates": "14",
        "loss": "5.0",
        "nll_loss": "4.2",
        "valid_loss": "4.9",
    }


def test_whether_it_has_trained():
    progress = read("2026 | INFO | fairseq.trainer | begin training epoch 1\nTraceback\n")
    assert not progress.trained
    progress.read_line("2026 | INFO | fairseq.checkpoint_utils | Saved checkpoint x (epoch 1)")
    assert progress.trained
    progress.restart()
    assert not progress.trained
    assert live_line("group 0", "waiting", 0, progress) == "group 0: waiting"


def test_reads_only_what_is_new(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(SIMPLE)
    progress = Progress()
    reader = LogReader(os.open(log, os.O_RDONLY), len(SIMPLE), progress)
    reader.poll()
    assert progress.values == {}
    lines = JSON.splitlines(keepends=True)
    with log.open("a") as stream:
        stream.write(lines[0][:90])
        stream.flush()
        reader.poll()
        assert progress.values == {}
        stream.write(lines[0][90:])
    reader.poll()
    assert progress.values["num_updates"] == "12"


@pytest.mark.parametrize("change", ["rename", "delete", "truncate"])
def test_a_log_that_somebody_rotates(tmp_path, change):
    log = tmp_path / "log.txt"
    with log.open("a") as stream:
        stream.write("what came before\n" * 1000)
        stream.flush()
        progress = Progress()
        reader = LogReader(os.open(log, os.O_RDONLY), 0, progress)
        reader.poll()
        if change == "rename":
            log.rename(tmp_path / "log.txt.1")
            log.touch()
        elif change == "delete":
            log.unlink()
        else:
            os.truncate(log, 0)
        stream.write(SIMPLE)
        stream.flush()
        reader.poll()
    assert progress.values["num_updates"] == "27"
    assert reader.readable


def test_a_log_that_cannot_be_read_says_so(tmp_path):
    reader = LogReader(os.open(tmp_path, os.O_RDONLY), 0, Progress())
    reader.poll()
    assert not reader.readable


def test_a_line_without_end_takes_no_memory(tmp_path):
    log = tmp_path / "log.txt"
    with log.open("wb") as stream:
        stream.truncate(400 * 2**20)
    progress = Progress()
    reader = LogReader(os.open(log, os.O_RDONLY), 0, progress)
    tracemalloc.start()
    reader.poll()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20
    with log.open("a") as stream:
        stream.write("\n" + SIMPLE)
    reader.poll()
    assert progress.update == 27


def test_a_file_gets_only_lines_that_changed():
    stream = io.StringIO()
    view = LiveView(stream)
    view.show(["a 1", "b 1"], now=0)
    view.show(["a 2", "b 1"], now=5)
    view.show(["a 2", "b 1"], now=10)
    view.announce("news")
    view.show(["a 2", "b 2"], now=11, final=True)
    assert stream.getvalue().splitlines() == ["a 1", "b 1", "a 2", "news", "b 2"]


def test_a_terminal_is_redrawn(monkeypatch):
    monkeypatch.setenv("COLUMNS", "8")
    stream = Terminal()
    view = LiveView(stream)
    view.show(["a 1", "b is too long"], now=0)
    view.announce("news")
    view.show(["a 2", "b"], now=0.5)
    view.show(["a 2", "b"], now=1)
    again = "\x1b[2F\x1b[J"
    assert stream.getvalue() == (f"a 1\nb is to\n{again}news\na 1\nb is to\n{again}a 2\nb\n")
