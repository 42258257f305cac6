"""Imports go down only, and the package itself imports neither torch nor fairseq."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fairseq_codistill"

# What each room may import of the package, itself apart; the lower floors first.
ROOMS = {
    "records": set(),
    "objective": set(),
    "exchange": {"records"},
    "codistillation": {"objective", "exchange", "records"},
    "criterions": {"codistillation", "objective", "records", "sentences"},
    "tasks": {"codistillation", "criterions", "plain", "records", "sentences", "sigterm"},
    "vision": {"codistillation", "records", "sentences", "sigterm"},
    "launch": {"errors", "installed", "records", "statuses", "__version__"},
    "status": {"errors", "exchange", "launch", "records"},
    "report": {"errors", "launch", "records"},
    "export": {"errors", "launch", "plain", "records"},
}
FRAMEWORKS = {"fairseq", "fairseq_cli", "torchvision"}
# Which of them the adapters may import.
FRAMEWORKS_OF = {
    "criterions": {"fairseq"},
    "tasks": {"fairseq"},
    "vision": {"torchvision"},
    "export": {"fairseq"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of what a module imports; of `from a import b`, a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    for path in (PACKAGE / room).rglob("*.py"):
        names = [name.split(".") for name in imports(path)]
        rooms = {parts[1] for parts in names if parts[0] == "fairseq_codistill"} - {room}
        assert rooms <= ROOMS[room], path
        frameworks = {parts[0] for parts in names} & FRAMEWORKS
        assert frameworks <= FRAMEWORKS_OF.get(room, set()), path


def test_the_vision_entry_point_brings_no_fairseq_with_it():
    code = "import sys, fairseq_codistill.vision.program; print('fairseq' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("module", ["fairseq_codistill", "fairseq_codistill.records"])
def test_the_package_and_its_records_import_neither_torch_nor_fairseq(module):
    code = f"import sys, {module}; print({{'torch', 'fairseq'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
