"""The built wheel, installed into an empty environment, as after `pip install`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import BIN, TINY, environment

ROOT = Path(__file__).parent.parent


def python(version: str) -> str | None:
    """Path of an interpreter of that version, if this machine has one."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    candidates = [f"python{version}", *installed]
    for candidate in candidates:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if done.stdout.strip() == version:
            return str(candidate)
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_wheel_works_in_an_empty_environment(wheel, corpus, tmp_path, version):
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} on this machine")
    home = tmp_path / "env"
    subprocess.run([interpreter, "-m", "venv", str(home)], check=True)
    subprocess.run([str(home / "bin/pip"), "install", "--quiet", str(wheel)], check=True)
    env = environment(PATH=f"{home / 'bin'}:{os.environ['PATH']}")
    assert str(BIN) != str(home / "bin")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    folder = run(str(home / "bin/codistill"), "user-dir").strip()
    assert Path(folder).is_relative_to(home)
    assert "broken" not in run(str(home / "bin/codistill"), "doctor")
    run(
        *[str(home / "bin/codistill"), "launch", "--groups", "2", "--out", "out", "--"],
        *["fairseq-train", str(corpus), *TINY, "--user-dir", folder],
        *["--task", "codistill_translation", "--criterion", "codistill_cross_entropy"],
        *["--codistill-interval", "5"],
    )
    path = tmp_path / "out/group-0/checkpoint_last.pt"
    out = run(
        *[str(home / "bin/fairseq-generate"), str(corpus), "--user-dir", folder],
        *["--path", str(path), "--task", "translation", "-s", "de", "-t", "en", "--cpu"],
    )
    assert out.count("\nH-") > 100
