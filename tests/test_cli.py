"""The command: quick help, clear refusals, `--print`, user-dir, doctor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_codistill
from fairseq_codistill import cli, doctor
from fairseq_codistill.installed import fairseq_distributions, version_of

PACKAGE = Path(fairseq_codistill.__file__).parent


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["launch", "--help"],
        ["status", "--help"],
        ["export", "--help"],
        ["user-dir"],
        ["launch", "--groups", "2", "--out", "x", "--print", "--", "fairseq-train", "d", "--cpu"],
    ],
)
def test_answers_without_torch_and_fairseq(arguments):
    code = """
import sys
from fairseq_codistill import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
assert not {"torch", "fairseq", "numpy"} & set(sys.modules)
"""
    result = python(code, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "fairseq_codistill", "user-dir"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == str(PACKAGE)


def test_a_mistake_is_one_sentence_and_status_2(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["launch", "--groups", "2", "--out", str(out), "--", "torchrun", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("codistill: error: cannot launch 'torchrun x'")
    assert captured.err.count("\n") == 1
    assert cli.main(["launch", "--groups", "2", "--out", str(out)]) == 2
    assert "after `--`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "--groups", "0", "--out", "x", "--", "fairseq-train"],
        ["launch", "--groups", "1", "--out", "x", "--max-restarts", "-1", "--", "fairseq-train"],
        [
            "launch",
            "--groups",
            "1",
            "--out",
            "x",
            "--workers-per-group",
            "0",
            "--",
            "fairseq-train",
        ],
        ["user-dir", "--", "fairseq-train"],
        [],
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


def test_print_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--print", "--", "fairseq-train", "data", "--cpu"]
    assert cli.main(["launch", "--groups", "2", "--out", str(out), *command]) == 0
    printed = capsys.readouterr().out
    assert printed.count("fairseq-train data") == 2
    assert printed.count("CODISTILL_NONCE=") == 2
    assert not out.exists()


@pytest.mark.parametrize("show", [[], ["--print"]])
@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_an_out_that_is_a_file_is_refused(tmp_path, capsys, place, show):
    (tmp_path / "file").write_text("mine")
    options = ["--groups", "2", "--out", str(tmp_path / place), *show]
    assert cli.main(["launch", *options, "--", "fairseq-train", "data", "--cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("codistill: error: ")
    assert said.count("\n") == 1
    assert "choose another" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_installed():
    assert fairseq_distributions()
    assert version_of("no-such-distribution") is None


def test_doctor_finds_this_environment_healthy(capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    assert doctor.doctor() == 0
    table = capsys.readouterr().out
    assert "--user-dir" in table
    assert "broken" not in table


def test_doctor_tells_what_is_missing(tmp_path):
    # An environment in which only the package itself can be found.
    code = f"""
import sys
sys.path = [p for p in sys.path if "site-packages" not in p] + [{str(PACKAGE.parent)!r}]
from fairseq_codistill import doctor
for finding in (doctor._fairseq(), doctor._torch(), doctor._library("omegaconf", "omegaconf")):
    print(finding.state, finding.remedy)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["missing"] * 3
    assert all("pip install" in line for line in lines)
