"""benchmarks/gpu.sh: it measures in small on the CPU, and writes its part of README.md alone."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_measures  # noqa: E402
import stall  # noqa: E402

CPU = torch.device("cpu")
MACHINE = {
    "machine": {
        **{"gpu": "Some GPU", "cores": 16, "python": "3.12.3", "torch": "2.11.0", "cuda": "13.0"},
        **{"driver": "580.1", "commit": "0" * 40, "gpus": 1, "memory": 1},
    }
}


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_updates(tmp_path):
    found = gpu_measures.updates(
        CPU, tmp_path, "tiny", dtypes=["bfloat16"], tokens=[60, 120], classes=50, rounds=1
    )
    assert [row["model"] for row in found["rows"]] == ["tiny", "tiny"]
    assert [row["tokens"] for row in found["rows"]] == [41, 110]
    for row in found["rows"]:
        for name in ("plain, ms", *gpu_measures.FORMS):
            assert min(figures(row[name])) > 0
        assert row["peak bytes"].keys() == {"plain", *gpu_measures.FORMS}
        # What there is to gain from no logits at all.
        assert row["peak bytes"]["fused"] != row["peak bytes"]["naive"]


def test_updates_are_those_of_half_precision(tmp_path):
    found = gpu_measures.updates(
        CPU, tmp_path, "tiny", dtypes=["float16"], tokens=[60], classes=50, rounds=1
    )
    assert found["rows"][0]["dtype"] == "float16"
    assert found["overflows"] == 0


def test_each_form_is_the_one_that_it_says(tmp_path, monkeypatch):
    """The form is chosen anew for each update, and the model moves with it."""
    import steps

    asked = []
    usual = gpu_measures.Comparison._from_hidden

    def watched(self, student, hidden):
        asked.append(self._form)
        return usual(self, student, hidden)

    monkeypatch.setattr(gpu_measures.Comparison, "_from_hidden", watched)
    with (
        steps.plain("tiny", 50, CPU, torch.bfloat16) as plain,
        steps.codistilled(plain, 60) as ours,
    ):
        side = gpu_measures.HalfPrecision(ours)
        sample = steps.batch(plain, 60, 50, CPU)
        seen = {}
        for form in gpu_measures.FORMS:
            gpu_measures.in_form(ours, form)()
            before = [p.clone() for p in ours.model.parameters()]
            asked.clear()
            side.update(sample)
            seen[form] = (list(asked), ours.criterion.fused)
            after = list(ours.model.parameters())
            assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert seen == {
        "naive": ([], False),
        "factored": (["factored"], False),
        "joint": (["joint"], False),
        "chunked": (["chunked"], False),
        "fused": (["factored"], True),
    }


def test_heads_and_peer(tmp_path):
    found = gpu_measures.heads(CPU, tmp_path, sizes=[(20, 8, 50)], dtypes=["bfloat16"], rounds=1)
    (row,) = found["rows"]
    assert (row["N"], row["d"], row["V"], row["dtype"]) == (20, 8, 50, "bfloat16")
    assert min(figures(row["naive, ms"])) > 0
    found = gpu_measures.peer(CPU, tmp_path, sizes=["tiny"], tokens=60, rounds=1)
    assert min(figures(found["rows"][0]["as it is, ms"])) > 0


def test_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(stall, "build_large", lambda: torch.nn.Linear(8, 8))
    found = gpu_measures.exchange(CPU, tmp_path, rounds=1)
    names = [row["figure"] for row in found["rows"]]
    assert "publishing" in names
    assert all(row["values"] for row in found["rows"])


def made_up() -> list[dict]:
    """A record of a machine that never was."""
    peaks = {"plain": 400 * gpu.MIB, **dict.fromkeys(gpu_measures.FORMS, 500 * gpu.MIB)}
    update = {"model": "big", "dtype": "float16", "V": 32768, "tokens": 3575}
    update |= {"plain, ms": "61.5 (60.0 to 62.0)", "peak bytes": peaks}
    update |= dict.fromkeys(gpu_measures.FORMS, "1.31 (1.30 to 1.33)")
    head = {"dtype": "float16", "N": 3584, "d": 1024, "V": 32768, "naive, ms": "9.1 (9.0 to 9.2)"}
    head |= dict.fromkeys(["cross-entropy", "factored", "chunked"], "0.71 (0.70 to 0.72)")
    head |= {"fused, factored": "0.81 (0.80 to 0.82)", "kl chunked / kl": "1.41 (1.40 to 1.42)"}
    head |= {"peak bytes": {"naive": 900 * gpu.MIB, "kl": 2000 * gpu.MIB}}
    peer = {"model": "base", "tokens": 3575, "as it is, ms": "5.1 (5.0 to 5.2)"}
    peer |= {"dropout": "1.10 (1.0 to 1.2)", "bfloat16": "0.41 (0.40 to 0.42)"}
    cost = {"figure": "publishing", "unit": "s", "values": [0.002, 0.001, 0.003]}
    rows = {"updates-big": update, "updates-base": update | {"model": "base"}, "head": head}
    rows |= {"peer": peer | {"change by bfloat16": "7.0e-05"}, "exchange": cost}
    lines = [
        {"name": name, "seconds": 1.0, "ok": True, "says": "", "rows": [row]}
        for name, row in rows.items()
    ]
    return [MACHINE, *lines]


@pytest.fixture
def record(tmp_path):
    def write(lines):
        path = tmp_path / "record.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def readme(tmp_path):
    """A copy of benchmarks/README.md."""
    path = tmp_path / "README.md"
    path.write_text(gpu.README.read_text())
    return path


def test_the_figures_go_between_the_markers_and_nothing_else_changes(record, readme):
    before = readme.read_text()
    for _ in range(2):  # what is there is replaced
        assert gpu.main(["--from", str(record(made_up())), "--readme", str(readme)]) == 0
        head, _, rest = readme.read_text().partition(gpu.BEGIN)
        text, _, tail = rest.partition(gpu.END)
        assert head == before.partition(gpu.BEGIN)[0]
        assert tail == before.partition(gpu.END)[2]
    assert "No GPU has run it yet" not in text
    assert text.startswith("\n\nSeen on: gpu Some GPU, driver 580.1, torch 2.11.0, cuda 13.0")
    assert "| big | float16 | 3575 | 61.5 (60.0 to 62.0) | 1.31 (1.30 to 1.33) |" in text
    assert "| big | float16 | 3575 | 400 | 500 | 500 | 500 | 500 |" in text
    assert "| base | 3575 | 5.1 (5.0 to 5.2) | 1.10 (1.0 to 1.2) |" in text
    assert "| float16 | 3584 | 1024 | 32768 | 900 | 2000 |" in text
    assert "| publishing | 0.0020 (0.0010 to 0.0030) s |" in text
    assert "Not measured" not in text
    # Every table has as many cells in each row.
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_what_was_not_measured_is_said(record, readme):
    lines = made_up()
    lines[3] |= {"ok": False, "says": "it took longer than the 60 s that it had"}
    gpu.main(["--from", str(record(lines)), "--readme", str(readme)])
    text = readme.read_text()
    assert "Not measured: head (it took longer than the 60 s that it had)." in text
    assert "Output layer and loss, forward and backward" not in text


def test_a_run_of_a_part_leaves_readme_as_it_is(readme, monkeypatch, capsys):
    import argparse

    monkeypatch.setattr(gpu, "README", readme)
    before = readme.read_text()
    gpu.written(argparse.Namespace(readme=None), made_up()[:3])
    assert readme.read_text() == before
    assert "stays as it is: not all was measured" in capsys.readouterr().out
    gpu.written(argparse.Namespace(readme=None), made_up())
    assert "Some GPU" in readme.read_text()


@pytest.mark.parametrize("text", ["nothing", gpu.BEGIN, f"{gpu.END}\n{gpu.BEGIN}", gpu.BEGIN * 2])
def test_a_file_without_the_markers_is_refused(record, tmp_path, text):
    other = tmp_path / "other.md"
    other.write_text(text)
    with pytest.raises(SystemExit) as end:
        gpu.main(["--from", str(record(made_up())), "--readme", str(other)])
    assert "needs the lines" in str(end.value)
    assert other.read_text() == text
