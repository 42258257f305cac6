"""A group that trains as any other does and publishes weights that are of no use to anybody.

Its process imports a user-dir from ``user_dir`` in place of the plugin's own.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

# Products of two such numbers are beyond what float32 and bfloat16 hold, whose weights, alone, are
# not.  A float16 model does the same with factors of 1,000; no CPU trains in float16.
FACTOR = 1e20


def user_dir(folder: Path, kind: str, first: int) -> Path:
    """Write a user-dir that makes a group sick; see ``infect``."""
    folder.mkdir(parents=True)
    tests = str(Path(__file__).parent)
    lines = ["import sys", f"sys.path.insert(0, {tests!r})", "import sick_group"]
    lines += ["import fairseq_codistill.tasks.codistill_translation"]
    lines += [f"sick_group.infect({kind!r}, {first})"]
    (folder / "__init__.py").write_text("\n".join(lines) + "\n")
    return folder


def infect(kind: str, first: int) -> None:
    """Have this process publish weights that are of no use, from an update on.

    Args:
        kind: "overflow": finite weights whose forward pass overflows; "NaN": weights that are not
            finite, without the check that a publisher makes.
        first: the update, at least 1.
    """
    from fairseq_codistill.codistillation.membership import Membership
    from fairseq_codistill.exchange import tensors as wire

    usual = Membership._draft

    def draft(self: Membership, tensors: dict[str, Tensor], aliases: dict[str, str]) -> object:
        if self._update >= first:
            _spoil(tensors, kind)
        return usual(self, tensors, aliases)

    Membership._draft = draft  # type: ignore[assignment, method-assign]
    if kind == "NaN":
        wire._check_finite = lambda tensors, dtype: None


def _spoil(tensors: dict[str, Tensor], kind: str) -> None:
    for name in sorted(tensors):
        if kind == "overflow" and ".fc" in name and name.endswith("weight"):
            tensors[name].mul_(FACTOR)
        if kind == "NaN" and tensors[name].is_floating_point():
            tensors[name].view(-1)[0] = float("nan")
            return
