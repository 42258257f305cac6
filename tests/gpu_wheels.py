"""Packages for a machine without a network: what is missing comes from a directory of wheels.

The environment at hand is left as it is.  What is missing goes into a directory of its own, which
comes first on the path of imports.  torch, and what only torch needs, is never installed.
"""

import importlib.metadata
import importlib.util
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Modules without which nothing here runs, and the distributions that they are from.
NEEDED = {
    "fairseq": "ve-fairseq (or fairseq-fixed)",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "safetensors": "safetensors",
    "fsspec": "fsspec",
    "sacrebleu": "sacrebleu",
    "numpy": "numpy",
    "bitarray": "bitarray",
    "regex": "regex",
    "tqdm": "tqdm",
}
# torch, and the parts that its wheels name as their own requirements.
OF_TORCH = re.compile(r"torch|triton|pytorch-triton|nvidia-.*|cuda-.*")


def normal(name: str) -> str:
    """Return the name of a distribution as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, str]:
    """Return the versions that this project asks for: name -> specifier, from setup.py."""
    said: dict[str, Any] = {}
    stand_in: Any = types.ModuleType("setuptools")
    stand_in.setup = said.update
    stand_in.find_packages = lambda **more: []
    real = sys.modules.get("setuptools")
    sys.modules["setuptools"] = stand_in
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        if real is None:
            del sys.modules["setuptools"]
        else:
            sys.modules["setuptools"] = real
    found = {}
    for line in said["install_requires"]:
        match = re.match(r"([A-Za-z0-9._-]+)([^;]*)", line)
        assert match, line
        found[normal(match[1])] = match[2].strip()
    return found


def wanted(wheels: Path, installed: dict[str, str], asked: dict[str, str]) -> list[Path]:
    """Return the wheels of a directory that are to be installed.

    Args:
        wheels: the directory.
        installed: name -> version, of the environment.
        asked: name -> specifier, of this project.

    Raises:
        SystemExit: if there are none at all, or two of one package.
    """
    # pip brings its own copy; the package itself may be missing.
    from pip._vendor.packaging.specifiers import SpecifierSet

    found: dict[str, Path] = {}
    for path in sorted(wheels.glob("*.whl")):
        name = normal(path.name.split("-")[0])
        if OF_TORCH.fullmatch(name):
            continue
        if name in found:
            sys.exit(f"--wheels {wheels}: two wheels of {name}; leave one there")
        found[name] = path
    if not found:
        sys.exit(f"--wheels {wheels}: there is no wheel; fill it with `python -m pip download`")
    return [
        path
        for name, path in found.items()
        if name not in installed
        or not SpecifierSet(asked.get(name, "")).contains(installed[name], prereleases=True)
    ]


def install(wheels: Path, site: Path) -> list[str]:
    """Install into ``site`` what is missing; return the names of the wheels."""
    if not wheels.is_dir():
        sys.exit(f"--wheels {wheels}: there is no such directory")
    installed = {
        normal(one.metadata["Name"]): one.version
        for one in importlib.metadata.distributions()
        if one.metadata["Name"]
    }
    chosen = wanted(wheels, installed, requirements())
    if chosen:
        command = [
            *[sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"],
            *["--no-compile", "--no-cache-dir", "--target", str(site), *map(str, chosen)],
        ]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"--wheels {wheels}: pip could not install {len(chosen)} wheels (see above)")
    return [path.name for path in chosen]


def missing() -> list[str]:
    """Return the distributions of ``NEEDED`` that cannot be imported."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
