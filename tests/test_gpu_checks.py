"""tests/gpu.sh: it refuses without a GPU, and its checks find on the CPU what they look for."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu_checks
import gpu_runner
import gpu_runs
import gpu_tensors
import gpu_wheels
import pytest
import torch
from gpu_runner import Job
from test_exchange import state

from fairseq_codistill.codistillation import peer as peers
from fairseq_codistill.exchange import copies
from fairseq_codistill.objective import factored

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


# --- the script ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["tests/gpu.sh", "benchmarks/gpu.sh"])
def test_it_refuses_without_a_gpu(script, tmp_path):
    record = tmp_path / "record.jsonl"
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / script), "--json", str(record)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "finds no GPU, and this needs one; run it on a machine that has one" in line
    assert done.stdout == ""
    assert not record.exists()


def test_it_refuses_where_there_is_no_torch(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    (tmp_path / "python3").symlink_to(python)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", str(ROOT / "tests/gpu.sh")], capture_output=True, text=True, env=env, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "found no Python that has torch; activate an environment" in done.stderr


def test_an_old_torch_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(SystemExit) as end:
        gpu_runner.refuse_without_gpu()
    assert end.value.code == 2
    assert "torch 2.5.1+cu121 is older than 2.6" in capsys.readouterr().err


# A script like gpu_checks.py, whose checks end in each of the ways there are.
SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import gpu_runner
from gpu_runner import Job

def fine(device, work):
    print("what it prints goes to its log")
    return {{"says": f"on {{device}}", "number": 7}}

def wrong(device, work):
    assert 1 + 1 == 3, "the sum is off"

def breaks(device, work):
    return {{}}["key"]

def dies(device, work):
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(device, work):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path({folder!r}, "child").write_text(str(child.pid))
    time.sleep(600)

JOBS = [Job("fine", 60, fine), Job("fine-too", 60, fine), Job("wrong", 60, wrong),
        Job("breaks", 60, breaks), Job("dies", 60, dies), Job("hangs", {limit}, hangs)]
sys.exit(gpu_runner.run(JOBS, Path(__file__), "A test.", "record.jsonl"))
"""


@pytest.fixture
def script(tmp_path):
    """Run a script of checks on the CPU; gives the finished process and the record's lines."""

    def act(*flags, limit=15):
        path = tmp_path / "checks.py"
        path.write_text(SCRIPT.format(tests=str(ROOT / "tests"), folder=str(tmp_path), limit=limit))
        done = subprocess.run(
            [sys.executable, str(path), "--device", "cpu", *flags],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=200,
        )
        record = tmp_path / "record.jsonl"
        text = record.read_text() if record.exists() else ""
        return done, [json.loads(line) for line in text.splitlines()]

    return act


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_each_check_has_a_line_and_a_record_however_it_ends(script, tmp_path):
    done, lines = script("--side-by-side", "2")
    assert done.returncode == 1, done.stderr
    machine, *found = lines
    assert machine["machine"]["torch"] == torch.__version__
    results = {line["name"]: (line["ok"], line["says"]) for line in found}
    assert results == {
        "fine": (True, "on cpu"),
        "fine-too": (True, "on cpu"),
        "wrong": (False, "the sum is off"),
        "breaks": (False, "KeyError: 'key'"),
        "dies": (False, "its process ended with -9 and no result"),
        "hangs": (False, results["hangs"][1]),
    }
    assert re.fullmatch(r"it took longer than the 1\d s that it had", results["hangs"][1])
    assert next(line for line in found if line["name"] == "fine")["number"] == 7
    said = done.stdout.splitlines()
    assert said[0].endswith(f"torch {torch.__version__}") or "torch" in said[0]
    marks = {line.split()[1]: line.split()[0] for line in said[1:-1]}
    assert marks == {name: "ok" if ok else "FAIL" for name, (ok, _) in results.items()}
    assert said[-1] == "2 of 6 ok; the record is record.jsonl"
    # What hangs leaves nothing behind.
    assert not is_running(int((tmp_path / "child").read_text()))


def test_only(script):
    done, (_, *lines) = script("--only", "fine", "--only", "wrong")
    assert done.returncode == 1
    assert {line["name"] for line in lines} == {"fine", "fine-too", "wrong"}
    done, (_, *lines) = script("--only", "fine-too")
    assert done.returncode == 0
    assert [line["name"] for line in lines] == ["fine-too"]


def test_only_what_there_is(script):
    done, lines = script("--only", "speed")
    assert done.returncode != 0
    assert "--only speed: there is none; choose of fine, fine-too, wrong" in done.stderr
    assert not lines


def test_what_has_no_time_left_fails(script):
    done, (_, *lines) = script("--seconds", "0")
    assert done.returncode == 1
    assert [(line["ok"], line["says"]) for line in lines] == [
        (False, "no time was left for it")
    ] * 6


def test_every_check_has_a_name_of_its_own_and_fits_into_four_minutes():
    names = [job.name for job in gpu_checks.JOBS]
    assert len(set(names)) == len(names)
    assert all(isinstance(job, Job) and job.seconds < 240 for job in gpu_checks.JOBS)


# --- wheels --------------------------------------------------------------------------------------


def wheel(folder, name, version="1.0"):
    """Write a wheel by hand: one module, which tells its version."""
    folder.mkdir(exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(inside, text)
    return path


def test_what_is_missing_is_installed_and_torch_stays(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    for name in ("gpu-test-package", "torch", "nvidia-cublas-cu12", "triton", "numpy"):
        wheel(wheels, name)
    assert gpu_wheels.install(wheels, site) == ["gpu_test_package-1.0-py3-none-any.whl"]
    assert sorted(path.name for path in site.glob("*.py")) == ["gpu_test_package.py"]
    code = "import gpu_test_package, torch; print(gpu_test_package.version, torch.__version__)"
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["1.0", torch.__version__]


def test_what_is_too_old_for_this_project_is_installed_beside(tmp_path):
    asked = gpu_wheels.requirements()
    assert asked["fsspec"] == ">=2026.6"
    assert asked["torch"] == ">=2.6"
    paths = [wheel(tmp_path, "fsspec", "2026.9"), wheel(tmp_path, "numpy", "2.9")]
    old = {"fsspec": "2025.1", "numpy": "1.26"}
    assert gpu_wheels.wanted(tmp_path, old, asked) == paths[:1]
    assert gpu_wheels.wanted(tmp_path, old | {"fsspec": "2026.6"}, asked) == []


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (None, "there is no such directory"),
        ([], "there is no wheel"),
        (["torch"], "there is no wheel"),
        ([("some", "1.0"), ("some", "2.0")], "two wheels of some"),
    ],
)
def test_a_directory_that_will_not_do(tmp_path, names, why):
    folder = tmp_path / "wheels"
    if names is not None:
        folder.mkdir()
    for name in names or []:
        wheel(folder, *([name] if isinstance(name, str) else name))
    with pytest.raises(SystemExit) as end:
        gpu_wheels.install(folder, tmp_path / "site")
    assert why in str(end.value)


def test_nothing_is_missing_here():
    assert gpu_wheels.missing() == []


# --- checks within one process -------------------------------------------------------------------


def test_copies():
    found = gpu_tensors.copies(CPU, layers=3, width=16, rounds=6)
    assert found["rounds"] == 6
    assert found["bytes"] == 3 * 16 * 16 * 4


def test_copies_sees_one_that_is_another_updates(monkeypatch):
    usual = copies.CopyOut.__call__

    def late(self, state):
        tensors, aliases, ready = usual(self, state)
        return tensors, aliases, lambda: tensors["01.weight"].copy_(state["01.weight"])

    monkeypatch.setattr(copies.CopyOut, "__call__", late)
    with pytest.raises(AssertionError, match="6 of 6 copies differ"):
        gpu_tensors.copies(CPU, layers=3, width=16, rounds=6)


def test_background():
    found = gpu_tensors.background(CPU, layers=2, width=16, rounds=5, dtype=torch.float32)
    assert found["tensors"] == 10
    assert found["blocks"] < 10


def test_background_sees_a_snapshot_that_is_not_taken_over(monkeypatch):
    usual = peers._adopt

    def keeps_the_last(module, tensors):
        kept = module[1].weight.data.clone()
        before = usual(module, tensors)
        module[1].weight.data.copy_(kept)
        return before

    monkeypatch.setattr(peers, "_adopt", keeps_the_last)
    with pytest.raises(AssertionError, match="1.weight of snapshot 0 is another's"):
        gpu_tensors.background(CPU, layers=2, width=16, rounds=5, dtype=torch.float32)


def test_head():
    before = [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32]
    found = gpu_tensors.head(CPU, rows=600, width=32, classes=700)
    assert [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32] == before
    # Five precisions of eight forms and two cross-entropies, and what torch has of TF32.
    apis = 4 if hasattr(torch.backends.cuda.matmul, "fp32_precision") else 2
    assert len(found["off"]) == 5 * 11 + apis * 3


@pytest.mark.parametrize("api", gpu_tensors.TF32_APIS)
def test_each_way_switches_tf32_on_and_off_again(api):
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has no single switch to read")

    def now():
        return matmul.fp32_precision, torch.backends.fp32_precision

    before = now()
    with gpu_tensors.tf32(api) as there:
        assert there
        assert "tf32" in now()
    assert now() == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_head_sees_a_half_precision_product(monkeypatch):
    usual = factored.cross

    def rounded(student, peer):
        return usual(student, peer).bfloat16().float()

    monkeypatch.setattr("fairseq_codistill.codistillation.comparison.cross", rounded)
    with pytest.raises(AssertionError, match="float32, logit-mse, factored: .* gradients"):
        gpu_tensors.head(CPU, rows=600, width=32, classes=700, only=["float32"])


def test_dropout():
    found = gpu_tensors.dropout(CPU, size="tiny", classes=60, tokens=100)
    assert "in 6 ways" in found["says"]


def test_dropout_sees_a_peer_that_draws_from_the_students_numbers(monkeypatch):
    import contextlib

    monkeypatch.setattr(torch.random, "fork_rng", lambda **more: contextlib.nullcontext())
    with pytest.raises(AssertionError, match="with a peer|random state differs"):
        gpu_tensors.dropout(CPU, size="tiny", classes=60, tokens=100)


def test_sick():
    found = gpu_tensors.sick(CPU, size="tiny", classes=60, tokens=100, dtype=torch.float32)
    assert found["says"] == "left out and back again: diverged"


def test_sick_sees_a_peer_that_is_learnt_from(monkeypatch):
    from fairseq_codistill.codistillation import acceptance

    monkeypatch.setattr(acceptance, "objection", lambda *given, **more: None)
    with pytest.raises(AssertionError, match="a peer that has diverged was learnt from"):
        gpu_tensors.sick(CPU, size="tiny", classes=60, tokens=100, dtype=torch.float32)


def test_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_tensors.devices(CPU)["names"] == []


# --- checks that start processes -----------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_launch(tmp_path, monkeypatch, precision):
    # How long groups wait for each other is no matter of a test.
    monkeypatch.setattr(gpu_runs, "STALL", 60.0)
    found = gpu_runs.launch(CPU, tmp_path, precision=precision, updates=15)
    print(found["says"])
    for group in ("group 0", "group 1"):
        first, last = found[group]["D"]
        assert last < first
        assert found[group]["batches"] == 15


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(AssertionError, match="--fp16 needs a GPU, and torch finds none"):
        gpu_runs.launch(CPU, tmp_path, precision="fp16", updates=5)


LINE = {
    "batch": ["cpu int64"],
    "parameters": ["cpu float32"],
    "gradients": ["cpu float32"],
    "peers": 1,
    "of peers": ["cpu float32"],
}
LOG = (
    '| train_inner | {{"codistill_peers": "1", "codistill_loss": "{d}", "codistill_stall": "{s}"}}'
)


@pytest.mark.parametrize(
    ("changes", "distances", "stall", "more", "why"),
    [
        ({}, [3, 1], 0.1, "", None),
        ({"parameters": ["cpu float32", "cuda float32"]}, [3, 1], 0.1, "", "cuda float32"),
        ({"of peers": ["cpu float16"]}, [3, 1], 0.1, "", "cpu float16"),
        ({"batch": ["cuda int64"]}, [3, 1], 0.1, "", "cuda int64"),
        ({"gradients": []}, [3, 1], 0.1, "", "'gradients': \\[\\]"),
        ({"peers": 0}, [3, 1], 0.1, "", "'peers': 0"),
        ({}, [3, 3], 0.1, "", "D did not fall: 3, then 3"),
        ({}, [3, 1], 99.0, "", "stood still for 99.00 s"),
        ({}, [3, 1], 0.1, "gradient overflow detected", "1 overflows in float32"),
    ],
)
def test_what_launch_looks_at(tmp_path, changes, distances, stall, more, why):
    log = tmp_path / "log.txt"
    logged = [LOG.format(d=d, s=stall) for d in distances]
    log.write_text("\n".join([*logged, more]) + "\n")
    watch = [LINE, LINE | changes]
    if why is None:
        assert gpu_runs._group(log, watch, CPU, "float32")["D"] == distances
    else:
        with pytest.raises(AssertionError, match=why):
            gpu_runs._group(log, watch, CPU, "float32")


def test_workers(tmp_path):
    found = gpu_runs.workers(CPU, tmp_path, backends=["legacy_ddp"], updates=4)
    assert found["apart"] == {"legacy_ddp": 0.0}


def test_how_far_models_are_apart():
    one, other = state(), state()
    assert gpu_runs._distance(one, other) == 0
    other["bias"] = other["bias"] + 1e-3
    assert 0 < gpu_runs._distance(other, one) < 1e-2


@pytest.mark.timeout(500)
def test_images(tmp_path):
    pytest.importorskip("torchvision")
    found = gpu_runs.images(CPU, tmp_path, compile=False, updates=5, each=20, side=12, workers=1)
    assert not found["compiled"]
    assert found["says"] == "bf16, channels last, not compiled; it goes on where it was"


def test_how_a_resumed_scale_goes_on():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(scaler.state_dict() | gpu_runs.SCALER)
    seen = []
    for _ in gpu_runs.SCALES:
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.append(scaler.get_scale())
    assert seen == gpu_runs.SCALES
