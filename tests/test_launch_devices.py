"""Which devices the groups get, and that torch is asked about them before anything starts.

nvidia-smi is a script on PATH, torch a module on PYTHONPATH that knows CUDA's rules for
CUDA_VISIBLE_DEVICES, or the real one on a machine without a GPU.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, TINY, environment, eventually

from fairseq_codistill import cli, doctor
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import devices, probe, torch_devices
from fairseq_codistill.launch.devices import Devices, Unusable, check, divide, list_gpus
from fairseq_codistill.launch.torch_devices import interpreter_of

PYTHON = (sys.executable, "-m", "module")

# What torch sees on a machine with GPUs of these UUIDs; the MIG slices are those of the first.
TORCH = """
import os
GPUS = {gpus!r}
MIGS = ["MIG-a", "MIG-b"]
__version__ = "2.9"
class version:
    hip = {hip!r}
def visible():
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(range(len(GPUS)))
    if version.hip:
        if "ROCR_VISIBLE_DEVICES" in os.environ:
            gpus = [int(name) for name in os.environ["ROCR_VISIBLE_DEVICES"].split(",")]
            gpus = [gpu for gpu in gpus if gpu < len(GPUS)]
        value = os.environ.get("HIP_VISIBLE_DEVICES", value)
    if value is None:
        return gpus
    seen = []
    for name in value.split(","):
        if name in GPUS:
            index = GPUS.index(name)
        elif name in MIGS:
            index = name
        elif name.isdecimal() and int(name) < len(gpus):
            index = gpus[int(name)]
        else:
            break
        if index in seen:
            return []
        seen.append(index)
    return seen[:1] if set(seen) & set(MIGS) else seen
class cuda:
    @staticmethod
    def device_count():
        return len(visible())
    @staticmethod
    def is_available():
        return bool(visible())
    @staticmethod
    def init():
        if not visible():
            raise RuntimeError("No CUDA GPUs are available")
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def smi(folder: Path, gpus: int) -> Path:
    """An nvidia-smi that lists GPUs, the first one with a MIG slice."""
    lines = [f"GPU {i}: NVIDIA A100 (UUID: GPU-{i})" for i in range(gpus)]
    lines[1:1] = ["  MIG 1g.5gb Device 0: (UUID: MIG-a)"]
    return script(folder / "nvidia-smi", "#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Make a machine: what nvidia-smi lists, what torch sees; gives launch's environment."""
    monkeypatch.setattr(devices, "DEVICE_FILES", (str(tmp_path / "dev/nvidia[0-9]*"),))
    monkeypatch.setattr(devices, "ROCM_FILE", str(tmp_path / "dev/kfd"))

    def make(listed: int | None, torch: int, hip: str | None = None, **variables: str):
        if listed is not None:
            smi(tmp_path / "bin", listed)
        text = TORCH.format(gpus=[f"GPU-{i}" for i in range(torch)], hip=hip)
        (tmp_path / "torch.py").write_text(text)
        return {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
        } | variables

    return make


def planned(environ, groups=2, workers=None) -> Devices:
    """What launch plans and torch confirms."""
    found = devices.find_devices(environ, PYTHON, False, groups, workers)
    assert check(found, PYTHON, environ) == []
    return found


@pytest.mark.parametrize(
    ("listed", "groups", "workers", "expected"),
    [
        (8, 2, None, ["0,1,2,3", "4,5,6,7"]),
        (8, 2, 1, ["0", "4"]),
        (2, 2, None, ["0", "1"]),
        (2, 1, None, ["0,1"]),
    ],
)
def test_what_nvidia_smi_lists_is_divided(machine, listed, groups, workers, expected):
    found = planned(machine(listed, listed), groups, workers)
    each = [found.environment(group) for group in range(groups)]
    assert each == [{"CUDA_VISIBLE_DEVICES": names} for names in expected]
    assert f"nvidia-smi lists {listed} GPU(s)" in str(found)


def test_three_gpus_do_not_divide_among_two_groups(machine):
    with pytest.raises(UserError, match="--groups 2 does not divide 3 GPU"):
        planned(machine(3, 3))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("GPU-3,GPU-1", [("GPU-3",), ("GPU-1",)]),
        (" 7, 2 ,", [("7",), ("2",)]),
        ("5,5", [("5",), ("5",)]),
        ("0,1,0,1", [("0", "1"), ("0", "1")]),
        ("MIG-a,MIG-b", [("MIG-a",), ("MIG-b",)]),
        ("3,-1", None),
    ],
)
def test_what_the_user_names_is_divided(machine, visible, expected):
    environ = machine(8, 8, CUDA_VISIBLE_DEVICES=visible)
    if expected is None:
        with pytest.raises(UserError, match="--groups 2 does not divide 1 GPU"):
            planned(environ)
    else:
        assert list(planned(environ).gpus) == expected


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_a_user_who_hides_the_gpus_trains_on_the_cpu(machine, visible):
    environ = machine(4, 4, CUDA_VISIBLE_DEVICES=visible)
    found = planned(environ)
    assert found.cpu
    assert found.environment(1) == {"CUDA_VISIBLE_DEVICES": ""}
    assert "CUDA_VISIBLE_DEVICES hides every GPU" in str(found)


def test_no_sign_of_a_gpu_is_said(machine):
    found = planned(machine(None, 4))
    assert found.cpu
    assert "on the CPU" in str(found)
    assert "no sign of a GPU" in str(found)


@pytest.mark.parametrize(
    ("listed", "torch", "visible", "said"),
    [
        # An old driver: what it lists, torch cannot use.
        (4, 0, None, r"nvidia-smi lists 4 GPU.*group 0 has 2 worker.*counts 0 .*No CUDA GPUs are"),
        (8, 6, None, r"nvidia-smi lists 8 .*group 1 has 4 worker.*=4,5,6,7.*counts 2 "),
        # Indices of another machine, or of a GPU that is gone.
        (4, 4, "2,4", r"names 2 GPU.*group 1 has 1 worker.*=4.*counts 0 "),
        (4, 4, "0,1,2,7", r"group 1 has 2 worker.*=2,7.*counts 1 "),
        (4, 4, "GPU-0,GPU-9", r"group 1 has 1 worker.*=GPU-9.*counts 0 "),
        # What Slurm says to a job without GPUs.
        (None, 0, "NoDevFiles,NoDevFiles", r"names 2 GPU.*counts 0 "),
        (None, 0, "0,1", r"names 2 GPU.*group 0 has 1 worker.*counts 0 "),
    ],
)
def test_what_torch_does_not_see_is_refused(machine, listed, torch, visible, said):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(Unusable, match=said) as error:
        planned(machine(listed, torch, **variables))
    assert "--cpu (hydra: common.cpu=true)" in str(error.value)


def test_counts_that_are_not_cudas_own(machine, tmp_path):
    # The driver still lists two, and device_count() believes it; is_available() does not.
    environ = machine(2, 2)
    with (tmp_path / "torch.py").open("a") as file:
        file.write("cuda.is_available = staticmethod(lambda: False)\n")
    with pytest.raises(Unusable, match="group 0 has 1 worker.*counts 0 device"):
        planned(environ)


def test_a_torch_that_ignores_the_list_is_told_of(machine, tmp_path):
    environ = machine(4, 4)
    with (tmp_path / "torch.py").open("a") as file:
        file.write("cuda.device_count = staticmethod(lambda: 4)\n")
    found = devices.find_devices(environ, PYTHON, False, 2, None)
    assert [note.count("counts 4 device(s)") for note in check(found, PYTHON, environ)] == [1, 1]


@pytest.mark.parametrize(
    ("names", "workers", "said"),
    [
        (["0", "0", "1", "1"], None, "group 0 would have GPU 0 more than once.*2 worker"),
        (["0", "1", "GPU-a", "GPU-a"], None, "group 1 would have GPU GPU-a more than once"),
        (["MIG-a", "MIG-b", "MIG-c", "MIG-d"], None, "group 0 would have 2 MIG slices"),
        (["MIG-a", "MIG-a", "1", "2"], None, "group 0 would have GPU MIG-a more than once"),
    ],
)
def test_what_cuda_would_not_show_a_group_is_refused(names, workers, said):
    with pytest.raises(Unusable, match=said):
        divide(names, 2, workers)
    assert len(divide(names, 2, 1).gpus) == 2


@pytest.mark.parametrize("visible", ["0,,1", "0,-1,1", ",0", "-1,0"])
def test_a_list_that_cuda_reads_in_part_is_refused(machine, visible):
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=.* before other names"):
        planned(machine(2, 2, CUDA_VISIBLE_DEVICES=visible))


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (
            "#!/bin/sh\necho 'GPU 0: broken'\necho no driver >&2\nexit 9\n",
            r"failed with status 9 \(no driver\)",
        ),
        ("#!/bin/sh\nsleep 1000\n", "did not end within 1 s"),
        ("#!/bin/sh\ntrap '' TERM INT\nwhile :; do sleep 1; done\n", "did not end within 1 s"),
        ("#!/bin/sh\nkill -SEGV $$\n", "ended by signal 11"),
        ("#!/bin/sh\nyes | tr -d '\\n'\n", "wrote more than"),
        ("\0\0", "cannot be started"),
    ],
)
def test_an_nvidia_smi_that_does_not_answer(machine, tmp_path, monkeypatch, tool, said):
    if "within" in said:
        monkeypatch.setattr(devices, "PATIENCE", 1.0)
    script(tmp_path / "bin/nvidia-smi", tool)
    found = planned(machine(None, 4))
    assert found.gpus == (("0", "1"), ("2", "3"))
    assert f"nvidia-smi {said.replace(chr(92), '')}" in str(found)
    assert "torch counts 4 GPU(s)" in str(found)
    with pytest.raises(Unusable, match=f"nvidia-smi .*{said}.*, but torch of .* counts 0 devices"):
        planned(machine(None, 0))


def test_gpus_that_only_torch_sees(machine, tmp_path):
    environ = machine(None, 3)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia3").touch()
    assert planned(environ, groups=3).gpus == (("0",), ("1",), ("2",))
    (tmp_path / "torch.py").write_text("raise OSError('the driver is another one')\n")
    with pytest.raises(Unusable, match=r"nvidia3, and torch could not be asked.*another one"):
        planned(environ)
    smi(tmp_path / "bin", 0)
    assert list_gpus(environ).gpus == 0
    with pytest.raises(Unusable, match="nvidia3"):
        planned(environ)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"HIP_VISIBLE_DEVICES": "4,5,2,3"},
            [{"CUDA": "4,5", "HIP": "4,5"}, {"CUDA": "2,3", "HIP": "2,3"}],
        ),
        (
            {"HIP_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "1,0"},
            [{"CUDA": "1", "HIP": "1"}, {"CUDA": "0", "HIP": "0"}],
        ),
        (
            {"ROCR_VISIBLE_DEVICES": "4,5,6,7"},
            [
                {"CUDA": "0,1", "HIP": "0,1", "ROCR": "4,5"},
                {"CUDA": "0,1", "HIP": "0,1", "ROCR": "6,7"},
            ],
        ),
        # HIP counts within what ROCR leaves, which stays.
        (
            {"ROCR_VISIBLE_DEVICES": "6,7", "HIP_VISIBLE_DEVICES": "0,1"},
            [{"CUDA": "0", "HIP": "0"}, {"CUDA": "1", "HIP": "1"}],
        ),
    ],
)
def test_rocm(machine, variables, expected):
    found = planned(machine(None, 8, hip="6.4", **variables))
    each = [found.environment(group) for group in range(2)]
    assert each == [{f"{k}_VISIBLE_DEVICES": v for k, v in one.items()} for one in expected]


def test_rocm_lists_that_are_wrong(machine):
    with pytest.raises(UserError, match="name different GPUs"):
        planned(machine(None, 8, "6.4", HIP_VISIBLE_DEVICES="0,1", CUDA_VISIBLE_DEVICES="2,3"))
    with pytest.raises(Unusable, match="ROCR_VISIBLE_DEVICES=9.*counts 0"):
        planned(machine(None, 8, "6.4", ROCR_VISIBLE_DEVICES="0,9"))


def test_rocm_is_hidden_too_from_what_trains_on_the_cpu(machine, tmp_path):
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    environ = machine(None, 8, "6.4", HIP_VISIBLE_DEVICES="0,1")
    assert devices.find_devices(environ, PYTHON, True, 2, None).environment(0) == hidden
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert devices.find_devices(machine(None, 8), PYTHON, True, 2, None).environment(0) == hidden


def test_a_torch_that_does_not_answer_is_refused(machine, tmp_path, monkeypatch):
    environ = machine(2, 2)
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(1000)\n")
    monkeypatch.setattr(torch_devices, "PATIENCE", 6.0)
    started = time.monotonic()
    with pytest.raises(Unusable, match=r"group 0 has 1 worker.*did not end within 6 s"):
        planned(environ)
    # Both groups' lists at the same time.
    assert time.monotonic() - started < 11
    (tmp_path / "torch.py").write_text("import os\nos._exit(0)\n")
    with pytest.raises(Unusable, match="which is no number"):
        planned(environ)


def test_the_interpreter_that_runs_the_command_is_asked(tmp_path):
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    other = script(tmp_path / "other env/bin/python3.12", "#!/bin/sh\n")
    python = script(tmp_path / "python3", "#!/bin/sh\n")

    def asked(first_lines: str) -> tuple[tuple[str, ...], bool]:
        script(tmp_path / "fairseq-train", first_lines)
        found = interpreter_of(["fairseq-train"], environ)
        return found.argv, found.told

    own = ((sys.executable,), False)
    assert asked("#!/opt/env/bin/python3.11\nimport sys\n") == (("/opt/env/bin/python3.11",), True)
    assert asked("#!/opt/env/bin/python -E\n") == (("/opt/env/bin/python", "-E"), True)
    assert asked("#!/usr/bin/env python3\n") == (("python3",), True)
    assert asked("#!/usr/bin/env -S python3 -u\n") == (("python3", "-u"), True)
    assert asked(f"#!/bin/sh\n'''exec' \"{other}\" \"$0\" \"$@\"\n' '''\n") == ((str(other),), True)
    assert asked('#!/bin/sh\nexec container run fairseq-train "$@"\n') == own
    assert asked("#!'\n") == own
    assert asked("\x7fELF") == own
    module = interpreter_of(["python3", "-u", "-m", "fairseq_cli.train"], environ)
    assert (module.argv, module.told) == ((str(python), "-u"), True)
    assert interpreter_of(["no-such-program"], environ).argv == own[0]
    # The environment need not be activated.
    assert interpreter_of(["fairseq-train"], {"PATH": "/bin"}).told


def test_torch_of_the_commands_environment_counts(machine, tmp_path):
    """Launch's own torch sees no GPU; the command's does, and the other way round."""
    environ = machine(2, 2)
    own = environ | {"PYTHONPATH": ""}
    wrapper = script(
        tmp_path / "env/bin/python3",
        f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n',
    )
    script(tmp_path / "bin/fairseq-train", f"#!{wrapper}\n")
    found = devices.find_devices(own, ["fairseq-train"], False, 2, None)
    assert check(found, ["fairseq-train"], own) == []
    with pytest.raises(Unusable):
        check(found, PYTHON, own)


def test_no_torch_where_the_interpreter_cannot_be_told(machine, tmp_path, monkeypatch):
    environ = machine(2, 2)
    (tmp_path / "torch.py").unlink()
    without = script(tmp_path / "own/python3", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    monkeypatch.setattr(sys, "executable", str(without))
    script(tmp_path / "bin/fairseq-train", '#!/bin/sh\nexec container run "$@"\n')
    found = devices.find_devices(environ, ["fairseq-train"], False, 2, None)
    (note,) = check(found, ["fairseq-train"], environ)
    assert "torch is not installed" in note
    # Told, it is the command that has no torch.
    with pytest.raises(Unusable, match="No module named 'torch'"):
        check(found, [str(without), "-m", "module"], environ)


def test_a_file_named_torch_beside_the_user_is_not_taken_for_it(machine, tmp_path, monkeypatch):
    environ = machine(2, 2)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/torch.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path / "here")
    script(tmp_path / "bin/fairseq-train", f"#!{sys.executable}\n")
    found = devices.find_devices(environ, ["fairseq-train"], False, 2, None)
    assert check(found, ["fairseq-train"], environ) == []
    with pytest.raises(Unusable, match="status 3"):
        check(found, PYTHON, environ)


def test_asking_ends_all_that_was_started(tmp_path):
    marker = f"codistill-{os.getpid()}-{time.monotonic_ns()}"
    code = f"sh -c 'sleep 1000; : {marker}' & wait"

    def runs() -> bool:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(path.read_bytes())
            except OSError:  # it has ended
                continue
        return any(marker.encode() in line for line in found)

    answer = probe.ask(["sh", "-c", code], os.environ, 0.5)
    assert answer.timed_out
    eventually(lambda: not runs(), "a process that was asked lives on")


def test_asking_does_not_wait_for_what_holds_the_pipes():
    started = time.monotonic()
    answer = probe.ask(["sh", "-c", "sleep 20 & echo 'GPU 0: x'"], os.environ, 15)
    assert (answer.out, answer.trouble) == ("GPU 0: x\n", "")
    assert time.monotonic() - started < 10


def test_asking_many_keeps_their_order():
    environs = [{**os.environ, "NUMBER": str(i)} for i in range(2 * probe.AT_ONCE + 1)]
    answers = probe.ask_each(["sh", "-c", "echo $NUMBER"], environs, 60)
    assert [int(answer.out) for answer in answers] == list(range(len(environs)))
    (lost,) = probe.ask_each(["no-such-program"], [os.environ], 60)
    assert "cannot be started" in lost.trouble


def visible(path: str) -> dict[str, str]:
    """The environment of a user who hides nothing, with one more folder on PATH."""
    env = environment(PATH=f"{path}:{BIN}:{os.environ['PATH']}")
    for name in ("CUDA", "HIP", "ROCR"):
        env.pop(f"{name}_VISIBLE_DEVICES", None)
    return env


@pytest.fixture
def no_gpu():
    """These tests are of a machine whose real torch sees no GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that torch can use")


@pytest.mark.usefixtures("no_gpu")
def test_launch_refuses_gpus_that_torch_cannot_use(tmp_path):
    smi(tmp_path / "bin", 4)
    out = tmp_path / "out"
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), "--"],
        *["fairseq-train", str(tmp_path), *TINY, *CODISTILL, "--fp16"],
    ]
    command.remove("--cpu")

    def launched() -> subprocess.CompletedProcess:
        return subprocess.run(
            command, capture_output=True, text=True, env=visible(str(tmp_path / "bin")), timeout=300
        )

    first, second = launched(), launched()
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert first.stderr == second.stderr
    assert first.stderr.count("\n") == 1
    assert "nvidia-smi lists 4 GPU(s)" in first.stderr
    assert "counts 0 device(s)" in first.stderr
    assert "--cpu" in first.stderr
    assert not list(out.glob("group-*"))
    assert not (out / "launch.json").exists()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("variable", ["nvidia-smi", "CUDA_VISIBLE_DEVICES"])
def test_images_do_not_fall_back_to_the_cpu(tmp_path, variable):
    """One GPU a group: the image program would train on the CPU without a word."""
    env = visible(str(tmp_path / "bin"))
    if variable == "nvidia-smi":
        script(tmp_path / "bin/nvidia-smi", "#!/bin/sh\necho no driver >&2\nexit 9\n")
    else:
        env[variable] = "0,1"
    out = tmp_path / "out"
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), "--"],
        *[sys.executable, "-m", "fairseq_codistill.vision", "--data", str(tmp_path)],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert variable in done.stderr
    assert not list(out.glob("group-*"))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("program", ["fairseq-train", "vision"])
def test_a_restart_does_not_fall_back_to_the_cpu(tmp_path, program):
    """The GPU is lost after launch has asked: what it starts again is given the same list."""
    env = visible(str(tmp_path)) | {"CUDA_VISIBLE_DEVICES": "0", "CODISTILL_NONCE": "nonce"}
    if program == "vision":
        words = [sys.executable, "-m", "fairseq_codistill.vision", "--data", str(tmp_path)]
        words += ["--arch", "resnet18", "--epochs", "1", "--batch-size", "2"]
        words += ["--save-dir", str(tmp_path / "save")]
    else:
        words = [str(BIN / program), str(tmp_path), *TINY, *CODISTILL]
        words.remove("--cpu")
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "gave this group CUDA_VISIBLE_DEVICES=0, and torch can use none" in done.stderr


def test_print_asks_no_torch(machine, tmp_path, capsys, monkeypatch):
    environ = machine(4, 0)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was asked')\n")
    monkeypatch.setenv("PATH", environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", environ["PYTHONPATH"])
    for name in ("CUDA", "HIP", "ROCR"):
        monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["launch", "--groups", "2", *out, "--print", "--", "fairseq-train", "d"]) == 0
    printed = capsys.readouterr().out
    assert "CUDA_VISIBLE_DEVICES=0,1" in printed
    assert "CUDA_VISIBLE_DEVICES=2,3" in printed


@pytest.fixture
def seen_by_doctor(monkeypatch):
    """Look at this process's environment as if it were the one given."""

    def look(environ: dict[str, str]) -> doctor.Finding:
        for name in ("CUDA", "HIP", "ROCR"):
            monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return doctor._gpus()

    return look


@pytest.mark.parametrize(
    ("listed", "torch", "visible", "state", "said"),
    [
        (2, 2, None, "ok", "nvidia-smi lists 2 GPU(s), torch can use 2"),
        (4, 0, None, "broken", "nvidia-smi lists 4 GPU(s), torch can use 0, not 0,1,2,3"),
        (4, 3, None, "broken", "torch can use 3, not 3"),
        (4, 4, "1,9", "broken", "CUDA_VISIBLE_DEVICES names 2 GPU(s), torch can use 1, not 9"),
        (4, 4, "1,1", "ok", "torch can use 1"),
        (4, 4, "MIG-a,MIG-b", "ok", "torch can use 2"),
        (
            4,
            0,
            "",
            "broken",
            "CUDA_VISIBLE_DEVICES hides every GPU; without it: nvidia-smi lists 4",
        ),
        (None, 0, None, "ok", "no sign of a GPU on this machine: CPU only"),
        (None, 0, "0,,1", "broken", "before other names"),
    ],
)
def test_doctor_compares_the_driver_with_torch(
    machine, seen_by_doctor, listed, torch, visible, state, said
):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    finding = seen_by_doctor(machine(listed, torch, **variables))
    assert finding.state == state
    assert said in finding.detail
    assert finding.needed is (visible != "")
    assert bool(finding.remedy) is (state == "broken" and "before other" not in said)


def test_doctor_reports_a_driver_that_hangs_or_fails(
    machine, tmp_path, seen_by_doctor, monkeypatch
):
    monkeypatch.setattr(devices, "PATIENCE", 1.0)
    script(tmp_path / "bin/nvidia-smi", "#!/bin/sh\nsleep 1000\n")
    finding = seen_by_doctor(machine(None, 0))
    assert (finding.state, finding.needed) == ("broken", True)
    assert "nvidia-smi did not end within 1 s" in finding.detail
    assert "counts 0" in finding.detail
    driver = doctor._driver()
    assert (driver.state, driver.needed) == ("broken", False)
    finding = seen_by_doctor(machine(None, 2))
    assert finding.state == "ok"
    assert "torch can use 2" in finding.detail


def test_doctor_imports_the_extras_and_what_hangs_is_reported(tmp_path, monkeypatch):
    for name in doctor._EXTRAS:
        pytest.importorskip(name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    (tmp_path / "matplotlib.py").write_text("import time\ntime.sleep(1000)\n")
    (tmp_path / "sentencepiece.py").write_text("import os\nos.abort()\n")
    found = {name: doctor._extra(name, *doctor._EXTRAS[name]) for name in ("torchvision", "s3fs")}
    found["sentencepiece"] = doctor._library("sentencepiece", "sentencepiece")
    monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    found["matplotlib"] = doctor._extra("matplotlib", *doctor._EXTRAS["matplotlib"])
    assert found.pop("s3fs").state == "ok"
    assert {finding.state for finding in found.values()} == {"broken"}
    assert "nms does not exist" in found["torchvision"].detail
    assert "belongs to this torch" in found["torchvision"].remedy
    assert "did not end within 1 s" in found["matplotlib"].detail
    assert "it hangs" in found["matplotlib"].remedy
    assert "signal 6" in found["sentencepiece"].detail
