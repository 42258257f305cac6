"""Every setting out of range is one sentence with the flag, the value and what to do."""

import pytest

from fairseq_codistill.codistillation import CodistillationConfig, ConfigError

TWO = {"codistill_num_groups": 2, "codistill_dir": "exchange"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"codistill_num_groups": 2}, "--codistill-dir is missing"),
        ({"codistill_num_groups": 0}, "--codistill-num-groups 0 is too small; give 1"),
        (TWO | {"codistill_group": 2}, "--codistill-group 2 is not one of 0 to 1"),
        ({"codistill_group": -1}, "--codistill-group -1 is not one of 0 to 0"),
        ({"codistill_run_id": ""}, "--codistill-run-id is empty"),
        (
            {"codistill_run_id": "r" * 201},
            f"--codistill-run-id {'r' * 37}... has 201 characters, or some that UTF-8 cannot hold; "
            "give all groups of the run one name of at most 200",
        ),
        ({"codistill_run_id": "run\ud800"}, "--codistill-run-id run\\ud800 has 4 characters"),
        ({"codistill_interval": 0}, "--codistill-interval 0 is too small; give 1"),
        ({"codistill_mode": "sync"}, "--codistill-mode sync is unknown; choose async or lockstep"),
        ({"codistill_timeout": 0.0}, "--codistill-timeout 0.0 is out of range"),
        ({"codistill_timeout": float("inf")}, "--codistill-timeout inf is out of range"),
        ({"codistill_keep": -1}, "--codistill-keep -1 is too small; give 0"),
        ({"codistill_snapshot_dtype": "int4"}, "--codistill-snapshot-dtype int4 is unknown"),
        ({"codistill_peer_dtype": "int8"}, "--codistill-peer-dtype int8 is unknown"),
        ({"codistill_divergence": "mse"}, "--codistill-divergence mse is unknown; choose logit-"),
        ({"codistill_temperature": 0.0}, "--codistill-temperature 0.0 is out of range"),
        ({"codistill_alpha": -0.1}, "--codistill-alpha -0.1 is out of range; give 0"),
        ({"codistill_alpha": float("nan")}, "--codistill-alpha nan is out of range"),
        ({"codistill_alpha_schedule": "cosine"}, "--codistill-alpha-schedule cosine is unknown"),
        ({"codistill_alpha_growth": 0.0}, "--codistill-alpha-growth 0.0 is out of range"),
        ({"codistill_alpha_step": -1.0}, "--codistill-alpha-step -1.0 is out of range"),
        ({"codistill_alpha_max": -1.0}, "--codistill-alpha-max -1.0 is out of range"),
        ({"codistill_head": "cheap"}, "--codistill-head cheap is unknown"),
        (
            {"codistill_head": "factored", "codistill_divergence": "kl"},
            "--codistill-head factored does not go with --codistill-divergence kl",
        ),
        ({"codistill_teachers": "a.pt::b.pt"}, "--codistill-teachers 'a.pt::b.pt' has a file wi"),
        ({"codistill_teachers": ""}, "--codistill-teachers '' has a file without a name; give"),
        ({"codistill_every": 0}, "--codistill-every 0 is too small; give 1"),
        ({"codistill_burn_in": -5}, "--codistill-burn-in -5 is too small; give 0"),
        ({"codistill_alpha_schedule": "step"}, "needs --codistill-alpha-milestones; name the"),
        ({"codistill_alpha_milestones": [3, 0]}, "--codistill-alpha-milestones 3,0 names an epoch"),
    ],
)
def test_one_sentence(settings, says):
    with pytest.raises(ConfigError) as error:
        CodistillationConfig(**settings).check()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{}, TWO, TWO | {"codistill_mode": "lockstep"}, {"codistill_run_id": "ä" * 200}],
)
def test_what_fits_passes(settings):
    CodistillationConfig(**settings).check()


def test_lockstep_keeps_all_unless_told_otherwise():
    assert CodistillationConfig().keep == 3
    assert CodistillationConfig(codistill_mode="lockstep").keep == 0
    assert CodistillationConfig(codistill_mode="lockstep", codistill_keep=2).keep == 2


def test_alpha_is_what_the_settings_say():
    alpha = CodistillationConfig(
        codistill_alpha=0.2,
        codistill_alpha_schedule="step",
        codistill_alpha_step=0.3,
        codistill_alpha_milestones=[2, 4],
        codistill_alpha_max=0.6,
        codistill_burn_in=3,
    ).alpha_schedule()
    # 0.8 after both milestones, but for the cap.
    assert [alpha(epoch, 3) for epoch in (1, 2, 3, 5)] == pytest.approx([0.2, 0.2, 0.5, 0.6])
    assert [alpha(epoch, 2) for epoch in (1, 5)] == [0, 0]
