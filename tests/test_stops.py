"""The settings of stops.py are what that check needs."""

import pytest
from stops import KILLS, SETTINGS, STOPS, deal

from fairseq_codistill.codistillation import CodistillationConfig, Wants
from fairseq_codistill.codistillation.comparison import (
    LARGE,
    MANY_LOGITS,
    Comparison,
    factored_is_cheaper,
)
from fairseq_codistill.criterions._rows import rows_by_settings

# Words of the corpus, with fairseq's own.
CLASSES = 60


def rows_of(setting):
    batch = 10 if "--batch-size" in setting.flags else None
    return rows_by_settings(setting.tokens, batch), setting.classes or CLASSES


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_auto_chooses_the_form_that_a_setting_is_there_for(setting):
    rows, classes = rows_of(setting)
    kl, fused = "kl" in setting.flags, "--codistill-fused-ce" in setting.flags
    comparison = Comparison(
        CodistillationConfig(
            codistill_divergence="kl" if kl else "logit-mse", codistill_fused_ce=fused
        )
    )
    wants = Wants.LOGITS if setting.form == "naive" else Wants.HIDDEN
    assert comparison.wants(rows, setting.width, classes) is wants
    assert comparison._form == setting.form


def test_there_are_settings_on_both_sides_of_every_threshold():
    sides = set()
    for setting in SETTINGS:
        rows, classes = rows_of(setting)
        logits = rows * classes
        cheaper = factored_is_cheaper(rows, setting.width, classes)
        if "kl" in setting.flags:
            sides.add(("kl, many", logits >= MANY_LOGITS))
        elif "--codistill-fused-ce" not in setting.flags:
            sides.add(("many" if logits >= MANY_LOGITS else "cheaper", cheaper))
        if 3.5 * setting.width <= rows < 4 * setting.width:
            sides.add(("large", logits >= LARGE))
    two_sided = {("kl, many"), ("cheaper"), ("large")}
    assert sides == {(name, side) for name in two_sided for side in (True, False)} | {
        ("many", False)
    }


def test_all_stops_and_kills_are_dealt():
    dealt = list(deal(20, 20, seed=1))
    kinds = [kind for _, _, some in dealt for kind, _ in some]
    assert len(kinds) == 40
    assert sum(kind in STOPS for kind in kinds) == sum(kind in KILLS for kind in kinds) == 20
    assert all(some for _, _, some in dealt)
    assert {workers for _, workers, _ in dealt} == {1, 2}
