"""The settings of codistillation: one dataclass, the single source of every ``--codistill-*`` flag.

Each adapter turns the fields into its framework's flags (``codistill_dir`` is ``--codistill-dir``).
"""

# fairseq reads the annotations of this dataclass at run time, and it knows types as `typing`
# spells them: no `from __future__ import annotations`, no `str | None`, no `list[int]`.
# ruff: noqa: UP006, UP035, UP045

import math
from dataclasses import dataclass, field, fields
from typing import Any, List, Optional

from fairseq_codistill.codistillation.peer import PEER_DTYPES
from fairseq_codistill.codistillation.topology import listens_to
from fairseq_codistill.exchange import LONGEST_RUN_ID, WIRE_DTYPES
from fairseq_codistill.objective import (
    DIVERGENCES,
    SCHEDULES,
    AlphaSchedule,
    Divergence,
    make_divergence,
)
from fairseq_codistill.records import is_text, printable

MODES = ("async", "lockstep")
HEADS = ("auto", "factored", "joint", "chunked", "naive")


class ConfigError(ValueError):
    """A setting is wrong; the message names the flag, the value and what to do."""


def _flag(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class CodistillationConfig:
    """What a user may set; ``check`` says in a sentence what does not fit."""

    codistill_dir: Optional[str] = _flag(
        None, "the exchange, where groups leave snapshots for each other: a path or fsspec URI"
    )
    codistill_num_groups: int = _flag(1, "n, the number of groups (and models)")
    codistill_group: int = _flag(0, "this group's index, from 0")
    codistill_run_id: str = _flag(
        "default", "names the run; files of other runs in the exchange are never used"
    )
    codistill_interval: int = _flag(2500, "T, updates between two snapshots of a group")
    codistill_mode: str = _flag(
        "async",
        "async: use the newest peer snapshots as they come and never wait; "
        "lockstep: at every multiple of T wait for the peers' snapshots of that very update",
    )
    codistill_timeout: float = _flag(
        1800.0, "lockstep: seconds to wait for a peer's snapshot before stopping"
    )
    codistill_max_staleness: int = _flag(
        0, "a peer older than this many updates is left out until it is fresh again; 0 = no limit"
    )
    codistill_keep: Optional[int] = _flag(
        None,
        "newest snapshots of this group that stay in the exchange, 0 = all "
        "(default: 3; in lockstep all, so that a group can be resumed)",
    )
    codistill_snapshot_dtype: str = _flag(
        "bfloat16", "what weights travel in: " + ", ".join(WIRE_DTYPES)
    )
    codistill_topology: str = _flag(
        "all",
        "who listens to whom; all; ring: i to i-1; star: 0 and each other, both ways; or a file "
        "with a line for each group, as in 2: 0 1",
    )
    codistill_teachers: Optional[str] = _flag(
        None, "trained models to learn from as from peers that never change: checkpoints, A:B:..."
    )
    codistill_trust_arch: Optional[str] = _flag(
        None,
        "architectures of your own that peers may have besides this group's and those that are "
        "known to read no files, A:B:...",
    )
    codistill_divergence: str = _flag(
        "logit-mse", "distance of the student's from a peer's logits: " + ", ".join(DIVERGENCES)
    )
    codistill_head: str = _flag(
        "auto",
        "how the divergence is computed; naive: from both models' logits; factored: the same from "
        "their last hidden states, without the peers' logits (not for kl); joint: the difference "
        "in one product, exact in half precision (for logit-mse); chunked: some tokens' logits at "
        "a time; auto: what is exact and costs least, by --max-tokens and the model",
    )
    codistill_fused_ce: bool = _flag(
        False, "compute the cross-entropy from some tokens' logits at a time: much less memory"
    )
    codistill_temperature: float = _flag(1.0, "softmax temperature of the divergence kl")
    codistill_peer_dropout: bool = _flag(
        False, "peers drop out as the student does, instead of running in eval mode"
    )
    codistill_peer_dtype: str = _flag(
        "student", "what peers compute in: " + ", ".join(PEER_DTYPES) + " (student: as it does)"
    )
    codistill_alpha: float = _flag(1.0, "weight of the divergence in epoch 1")
    codistill_alpha_schedule: str = _flag(
        "geometric", "how alpha changes from epoch to epoch: " + ", ".join(SCHEDULES)
    )
    codistill_alpha_growth: float = _flag(1.1, "geometric: factor of alpha from epoch to epoch")
    codistill_alpha_step: float = _flag(0.5, "step: what each milestone adds to alpha")
    codistill_alpha_milestones: List[int] = _flag(
        [], "step: epochs after which alpha grows, as in 15,30,40"
    )
    codistill_alpha_max: Optional[float] = _flag(None, "alpha never exceeds this")
    codistill_every: int = _flag(
        1, "K: compare with the peers on every K-th update only, with K times alpha"
    )
    codistill_burn_in: int = _flag(
        0, "first updates with alpha 0: no peer is run or waited for; growth counts all the same"
    )

    @classmethod
    def of(cls, source: Any) -> "CodistillationConfig":
        """Take the settings out of an adapter's larger configuration.

        Args:
            source: has the fields as attributes; those it lacks keep their defaults.
        """
        names = [f.name for f in fields(cls) if hasattr(source, f.name)]
        config = cls(**{name: getattr(source, name) for name in names})
        config.codistill_alpha_milestones = list(config.codistill_alpha_milestones)
        return config

    @property
    def keep(self) -> int:
        """Snapshots to keep, with the mode's default filled in; 0 = all."""
        if self.codistill_keep is not None:
            return self.codistill_keep
        return 0 if self.codistill_mode == "lockstep" else 3

    def listens_to(self) -> List[int]:
        """Give the groups that this one learns from.

        Not looked at by ``check``: a model is loaded with the settings it was trained with, where
        a file of those times need not be.

        Raises:
            ConfigError: if the topology is unknown or does not fit the number of groups.
        """
        topology = self.codistill_topology
        try:
            return listens_to(topology, self.codistill_num_groups, self.codistill_group)
        except ValueError as error:
            raise ConfigError(f"--codistill-topology {topology}: {error}") from None

    @property
    def teachers(self) -> List[str]:
        """The teachers' checkpoints."""
        return self.codistill_teachers.split(":") if self.codistill_teachers else []

    @property
    def trusted_archs(self) -> List[str]:
        """The architectures that peers may have because the user trusts them."""
        return self.codistill_trust_arch.split(":") if self.codistill_trust_arch else []

    @property
    def codistils(self) -> bool:
        """Whether there is anybody to learn from."""
        return self.codistill_num_groups > 1 or bool(self.teachers)

    @property
    def needs_exchange(self) -> bool:
        """Whether groups leave snapshots for each other."""
        return self.codistill_num_groups > 1

    def alpha_schedule(self) -> AlphaSchedule:
        """Give the schedule these settings describe."""
        return AlphaSchedule(
            kind=self.codistill_alpha_schedule,
            first=self.codistill_alpha,
            growth=self.codistill_alpha_growth,
            step=self.codistill_alpha_step,
            milestones=tuple(self.codistill_alpha_milestones),
            cap=self.codistill_alpha_max,
            burn_in=self.codistill_burn_in,
        )

    def divergence(self) -> Divergence:
        """Give the divergence these settings name."""
        return make_divergence(self.codistill_divergence, self.codistill_temperature)

    def check(self) -> None:
        """Check every setting that can be checked without the exchange.

        Raises:
            ConfigError: for the first that does not fit.
        """
        self._check_groups()
        _one_of("mode", self.codistill_mode, MODES)
        _at_least("interval", self.codistill_interval, 1)
        if "" in self.teachers or self.codistill_teachers == "":
            raise ConfigError(
                f"--codistill-teachers '{self.codistill_teachers}' has a file without a name; give "
                "checkpoints with a colon between them, or leave the flag out"
            )
        if "" in self.trusted_archs or self.codistill_trust_arch == "":
            raise ConfigError(
                f"--codistill-trust-arch '{self.codistill_trust_arch}' has an empty name; give "
                "architectures with a colon between them, or leave the flag out"
            )
        _at_least("every", self.codistill_every, 1)
        _positive("timeout", self.codistill_timeout)
        _at_least("max-staleness", self.codistill_max_staleness, 0)
        if self.codistill_keep is not None:
            _at_least("keep", self.codistill_keep, 0)
        _one_of("snapshot-dtype", self.codistill_snapshot_dtype, WIRE_DTYPES)
        _one_of("peer-dtype", self.codistill_peer_dtype, PEER_DTYPES)
        _one_of("divergence", self.codistill_divergence, DIVERGENCES)
        _one_of("head", self.codistill_head, HEADS)
        if self.codistill_head == "factored" and self.codistill_divergence == "kl":
            raise ConfigError(
                "--codistill-head factored does not go with --codistill-divergence kl, which needs "
                "the logits; give auto, chunked or naive"
            )
        if self.codistill_head == "joint" and self.codistill_divergence != "logit-mse":
            raise ConfigError(
                f"--codistill-head joint is for --codistill-divergence logit-mse, and this is "
                f"{self.codistill_divergence}; give auto, chunked or naive"
            )
        _positive("temperature", self.codistill_temperature)
        self._check_alpha()

    def _check_groups(self) -> None:
        n, group = self.codistill_num_groups, self.codistill_group
        _at_least("num-groups", n, 1)
        if not 0 <= group < n:
            raise ConfigError(
                f"--codistill-group {group} is not one of 0 to {n - 1}; groups count from 0, and "
                f"--codistill-num-groups is {n}"
            )
        if self.needs_exchange and not self.codistill_dir:
            raise ConfigError(
                f"--codistill-dir is missing; with --codistill-num-groups {n}, name a folder or "
                "URI that all groups share"
            )
        if not self.codistill_run_id:
            raise ConfigError(
                "--codistill-run-id is empty; give all groups of the run one name, or leave it out"
            )
        if not is_text(self.codistill_run_id, 1, LONGEST_RUN_ID):
            raise ConfigError(
                f"--codistill-run-id {printable(self.codistill_run_id, 40)} has "
                f"{len(self.codistill_run_id)} characters, or some that UTF-8 cannot hold; give "
                f"all groups of the run one name of at most {LONGEST_RUN_ID}"
            )

    def _check_alpha(self) -> None:
        _one_of("alpha-schedule", self.codistill_alpha_schedule, SCHEDULES)
        _not_negative("alpha", self.codistill_alpha)
        _positive("alpha-growth", self.codistill_alpha_growth)
        _not_negative("alpha-step", self.codistill_alpha_step)
        if self.codistill_alpha_max is not None:
            _not_negative("alpha-max", self.codistill_alpha_max)
        _at_least("burn-in", self.codistill_burn_in, 0)
        milestones = list(self.codistill_alpha_milestones)
        if self.codistill_alpha_schedule == "step" and not milestones:
            raise ConfigError(
                "--codistill-alpha-schedule step needs --codistill-alpha-milestones; name the "
                "epochs after which alpha grows, as in 15,30,40"
            )
        if any(milestone < 1 for milestone in milestones):
            raise ConfigError(
                f"--codistill-alpha-milestones {','.join(map(str, milestones))} names an epoch "
                "below 1; epochs count from 1"
            )


def _one_of(flag: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"--codistill-{flag} {value} is unknown; choose {' or '.join(choices)}")


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--codistill-{flag} {value} is too small; give {least} or more")


def _positive(flag: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--codistill-{flag} {value} is out of range; give a number above 0")


def _not_negative(flag: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"--codistill-{flag} {value} is out of range; give 0 or more")
