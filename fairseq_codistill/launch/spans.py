"""Schedules of the learning rate that depend on what may change from launch to launch.

The length may change, and so may validation.  Where a schedule spans the whole length, or follows
validation, the learning rate is another one from then on, which is said.
"""

from __future__ import annotations

from collections.abc import Mapping

from fairseq_codistill.launch.dialects import Dialect, Vision
from fairseq_codistill.launch.settings import last_part
from fairseq_codistill.launch.values import SHOWN, differs, same
from fairseq_codistill.records import printable

_VALIDATION = (
    *("validate-interval", "validate-interval-updates", "validate-after-updates"),
    *("disable-validation", "valid-subset", "combine-valid-subsets", "max-valid-steps"),
    *("best-checkpoint-metric", "maximize-best-checkpoint-metric"),
)
_NAME = "name of the schedule"
_OF_UPDATES = "optimization.max_update"


def notes(
    dialect: Dialect, old: Mapping[str, str], new: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return what may change and changes the learning rate: each setting, and a sentence about it.

    Args:
        dialect: whose settings they are.
        old: the settings of one group before, by their names.
        new: those of now.
    """
    before, now = _by_flag(old), _by_flag(new)
    schedule, decisive = (_of_images if isinstance(dialect, Vision) else _of_fairseq)(now)
    return [
        (
            name,
            f"--{name} {differs(before.get(name), now.get(name))}, and the learning rate depends "
            f"on it ({schedule}): from here on it is another one than it would have been",
        )
        for name in decisive
        if not same(name, before.get(name), now.get(name), ".", ".")
    ]


def _of_fairseq(said: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return fairseq's schedule, as it is written, and what of others decides its course.

    Args:
        said: settings by the flags' names.
    """
    # As a flag or as hydra's choice, or as it stands in hydra's file.
    kind = said.get(_NAME) or said.get("lr-scheduler") or "fixed"
    shown = f"--lr-scheduler {printable(kind, SHOWN)}"
    if kind == "reduce_lr_on_plateau":
        return shown, _VALIDATION
    spans = (
        (kind == "cosine" and not _is_given(said, "lr-period-updates"))
        or (kind == "polynomial_decay" and not _is_given(said, "total-num-update"))
        or (kind == "tri_stage" and _is_given(said, "phase-ratio"))
    )
    return shown, ("max-update",) if spans else ()


def _of_images(said: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the same of the image program, whose --max-update changes no schedule."""
    kind = said.get("lr-schedule", "goyal")
    spans = kind == "cosine" or (kind == "goyal" and not _is_given(said, "lr-milestones"))
    return f"--lr-schedule {printable(kind, SHOWN)}", ("epochs",) if spans else ()


def _by_flag(settings: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        key = _NAME if name == "lr_scheduler._name" else last_part(name)
        # A setting of the schedule of the same name is not one of the length.
        if not (name.startswith("lr_scheduler.") and key in ("max-update", "epochs")):
            found[key] = value
    return found


def _is_given(said: Mapping[str, str], name: str) -> bool:
    value = said.get(name, "null")
    # hydra's way to refer to another setting, as fairseq's own defaults do.
    return value not in ("null", "None", "-1", "-1.0", "[]") and _OF_UPDATES not in value
