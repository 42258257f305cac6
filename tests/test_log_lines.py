"""Lines of logs: read in blocks, bounded; taken apart in linear time, whatever is in them."""

import math
import os
import tracemalloc
from contextlib import contextmanager

import pytest

from fairseq_codistill.records.lines import BLOCK, LineReader
from fairseq_codistill.records.training_log import (
    TRAIN,
    TRAIN_INNER,
    as_float,
    as_floats,
    as_texts,
    parse_numbers,
    split_prefix,
)


@contextmanager
def opened(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_lines_are_those_that_python_reads(tmp_path):
    path = tmp_path / "log"
    lines = [b"x" * (i * 7919 % 5000) for i in range(1000)] + [b"", b"\xff\xfe", b"last"]
    path.write_bytes(b"\n".join(lines))
    reader = LineReader()
    with opened(path) as descriptor:
        read = list(reader.read(descriptor))
    assert read == lines[:-1]
    assert reader.take_rest() == b"last"
    assert reader.take_rest() == b""
    assert reader.position == path.stat().st_size


@pytest.mark.parametrize("most", [1, 3, BLOCK - 1, BLOCK + 1])
def test_it_goes_on_where_it_stopped(tmp_path, most):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    reader = LineReader(position=path.stat().st_size)
    wanted = [b"a", b"bc" * 5, b"", b"d" * 20]
    read = []
    for line in wanted:
        with path.open("ab") as log:
            log.write(line[:4])
        with opened(path) as descriptor:
            assert not list(reader.read(descriptor, 2))
        with path.open("ab") as log:
            log.write(line[4:] + b"\n")
        # The file is opened anew between two reads, and each reads so many bytes at most.
        while reader.position < path.stat().st_size:
            with opened(path) as descriptor:
                before = reader.position
                read += reader.read(descriptor, most)
                assert reader.position - before <= most
    assert read == wanted


def test_a_restart_forgets_the_line_that_had_begun(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"old line that is not comp")
    reader = LineReader()
    with opened(path) as descriptor:
        assert list(reader.read(descriptor)) == []
    path.write_bytes(b"new\n")
    reader.restart()
    with opened(path) as descriptor:
        assert list(reader.read(descriptor)) == [b"new"]


def test_carriage_returns(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"10 %\r20 %\r\nepoch\n")
    with opened(path) as descriptor:
        assert [line for line in LineReader(returns=True).read(descriptor) if line] == [
            *(b"10 %", b"20 %", b"epoch")
        ]
        assert list(LineReader().read(descriptor)) == [b"10 %\r20 %\r", b"epoch"]


def test_a_line_that_is_too_long_is_skipped_and_counted(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"a\n" + b"x" * 11 + b"\nb\n" + b"y" * 10 + b"\n" + b"z" * 5000)
    for most in (1, 7, None):
        reader = LineReader(longest=10)
        read = []
        with opened(path) as descriptor:
            while reader.position < path.stat().st_size:
                read += reader.read(descriptor, most)
        assert read == [b"a", b"b", b"y" * 10]
        assert reader.skipped == 2
        assert reader.take_rest() == b""
    with path.open("ab") as log:
        log.write(b"\nc\n")
    with opened(path) as descriptor:
        assert list(reader.read(descriptor)) == [b"c"]
    assert reader.skipped == 2


def test_zeros_without_end_are_one_line_that_needs_no_memory(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as log:
        log.truncate(2**27)
    reader = LineReader()
    tracemalloc.start()
    with opened(path) as descriptor:
        assert list(reader.read(descriptor)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.skipped == 1
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    ("line", "logger", "message"),
    [
        ("2026-01-01 00:00:00 | INFO | train_inner | {1 | 2 | 3}", "train_inner", "{1 | 2 | 3}"),
        ("[2026-01-01 00:00:00,123][fairseq.trainer][INFO] - a", "fairseq.trainer", "a"),
        ('{"a": "x | INFO | train | y"}', "", '{"a": "x | INFO | train | y"}'),
        ("epoch 001 | loss 3 | ppl 4 | x", "", "epoch 001 | loss 3 | ppl 4 | x"),
        ("", "", ""),
    ],
)
def test_the_prefix(line, logger, message):
    assert split_prefix(line) == (logger, message)


@pytest.mark.parametrize(
    ("message", "kind", "update", "values"),
    [
        ('{"epoch": 1, "loss": "2.5", "num_updates": "7"}', TRAIN_INNER, 7, {"loss": 2.5}),
        ('{"epoch": 1, "train_loss": "2", "train_num_updates": "7"}', TRAIN, 7, {"loss": 2}),
        ('{"epoch": 1, "my_set_loss": "2", "my_set_num_updates": 7}', "my_set", 7, {"loss": 2}),
        ("epoch 001:  7 / 9 loss=2.5, lr=None, num_updates=7", TRAIN_INNER, 7, {"loss": 2.5}),
        ("epoch 001 | loss 2 | ppl inf | num_updates 7", TRAIN, 7, {"loss": 2, "ppl": math.inf}),
        ("epoch 001 | valid on 'v' subset | loss 2 | num_updates 7", "v", 7, {"loss": 2}),
        ('{"epoch": 1, "loss": NaN, "num_updates": "7"}', TRAIN_INNER, 7, {"loss": math.nan}),
        ('{"epoch": 1, "loss": "nan", "num_updates": "7"}', TRAIN_INNER, 7, {"loss": math.nan}),
        ('{"epoch": 1, "loss": "1e200", "num_updates": "7"}', TRAIN_INNER, 7, {"loss": math.inf}),
        ('{"epoch": 1, "loss": "-9e99", "num_updates": "7"}', TRAIN_INNER, 7, {"loss": -9e99}),
        ('{"epoch": 1, "x": [1], "y": null, "num_updates": "7"}', TRAIN_INNER, 7, {}),
        ('{"epoch": 1, "num_updates": null, "loss": "3"}', TRAIN_INNER, None, {"loss": 3}),
        ('{"epoch": 1, "num_updates": "many"}', TRAIN_INNER, None, {}),
    ],
)
def test_the_numbers(message, kind, update, values):
    found = parse_numbers(message)
    assert (found.kind, found.update) == (kind, update)
    assert as_floats(found.values) == pytest.approx({"epoch": 1.0} | values, nan_ok=True)
    for name, number in as_floats(found.values).items():
        assert as_float(found.values[name]) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize("message", ["", "[1]", "epoch 1 begins", "num_updates=3, loss=3"])
def test_what_is_no_line_of_numbers(message):
    assert parse_numbers(message) is None


@pytest.mark.parametrize(
    "update",
    ['"nan"', "NaN", '"inf"', "Infinity", "-1", "1e16", "9" * 5000, f'"{"9" * 5000}"', "9" * 400],
)
def test_an_update_that_is_none_makes_the_line_unreadable(update):
    with pytest.raises(ValueError, match="."):
        parse_numbers(f'{{"epoch": 1, "loss": "3", "num_updates": {update}}}')


@pytest.mark.parametrize(
    "message",
    [
        '{"num_updates": "12", torn',
        '{"num_updates": "12"}{"num_updates": "13"}',
        '{"a":' * 100_000,
        '{"a":' + "[" * 100_000,
        '{"num_updates": 3, "loss": ' + "9" * 5000 + "}",
    ],
)
def test_what_cannot_be_read(message):
    with pytest.raises(ValueError, match="."):
        parse_numbers(message)


def test_texts_for_a_terminal_are_numbers_alone():
    said = {"a": "5.90", "b": " 3\n", "c": "\x1b[2J", "d": 4, "e": None, "f": "1" * 50, "g": "nan"}
    assert as_texts(said) == {"a": "5.90", "b": "3", "d": "4", "g": "nan"}


BAD = [
    "a" * 200_000,
    "epoch 001: " + "a" * 200_000,
    "epoch 001 | " + "a1=" * 70_000,
    "epoch 001: a=" + "1" * 200_000,
    "epoch 001: a=" + "1e-" * 70_000,
    "epoch 001: " + "e-" * 100_000,
    "epoch 001: " + "_ " * 100_000,
    "epoch 001: " + "x=.=" * 50_000,
    "epoch 001 | valid on '" + "a" * 200_000,
    "[" * 200_000,
    "[" + "x][" * 70_000,
    " | " * 70_000,
    "x | INFO | " + "a." * 100_000,
    "x | " + "I" * 200_000,
    '{"' + "a_" * 100_000 + '": 1}',
    '{"num_updates": "' + "1" * 200_000 + '"}',
    "{" + ", ".join(f'"a{i}_num_updates_": "{i}"' for i in range(8000)) + "}",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_long_line_costs_time_in_proportion_to_its_length(line):
    # A pattern that is quadratic takes a minute for 200 kB, and half an hour for this.
    line += line[-1] * 800_000
    _, message = split_prefix(line)
    try:
        found = parse_numbers(message)
    except ValueError:
        return
    assert found is None or as_floats(found.values)
