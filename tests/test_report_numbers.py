"""`codistill report`: what it reads from logs, and the numbers it makes of them."""

import math

import numpy as np
import pytest
from written_runs import HYDRA, PREFIX, Writer, write_run

from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.report import (
    figures,
    labels,
    logs,
    runs,
    series,
    settings,
)


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


@pytest.mark.parametrize(
    ("alpha", "codistilled"),
    [
        ("'codistill_alpha': 0.0, 'codistill_alpha_schedule': 'constant'", False),
        ("'codistill_alpha': 0.0, 'codistill_alpha_schedule': 'step'", True),
        ("'codistill_alpha': 0.1, 'codistill_alpha_schedule': 'constant'", True),
    ],
)
def test_groups_with_alpha_0_are_without_peers(tmp_path, alpha, codistilled):
    for group in (0, 1):
        writer = Writer().start(seed=1 + group, groups=2)
        writer.lines[0] = writer.lines[0].replace(
            "'codistill_group'", f"{alpha}, 'codistill_group'"
        )
        writer.inner(2, loss=1, nll_loss=1, codistill_alpha=0, codistill_peers=0)
        writer.to(tmp_path / f"group-{group}" / "log.txt")
    (label,) = labels.group([runs.find(str(tmp_path))], [])
    assert label.codistilled is codistilled


def test_names_are_as_long_as_they_must_be(tmp_path):
    for name, lr in (("x/run", "1"), ("y/run", "2"), ("t4", "3"), ("t41", "4")):
        write_run(tmp_path / name, 1, lr=lr)
    found = [str(tmp_path / name) for name in ("x/run", "y/run", "t4", "t41/log.txt")]
    names = [label.name for label in labels.group([runs.find(run) for run in found], [])]
    assert names == ["x/run", "y/run", "t4", "t41"]
