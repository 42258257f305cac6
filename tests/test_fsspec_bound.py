"""The fsspec that may be installed is one whose templates cannot run a command."""

import json
import re
from pathlib import Path

import fsspec
import pytest

SETUP = Path(__file__).parents[1] / "setup.py"


def test_older_versions_of_fsspec_are_not_installed():
    bounds = re.findall(r'"(fsspec|s3fs)>=(\d+)\.(\d+)"', SETUP.read_text())
    # An s3fs takes the fsspec of its own version only.
    assert [name for name, *_ in bounds] == ["s3fs", "s3fs", "fsspec"]
    assert all((int(year), int(month)) >= (2026, 6) for _, year, month in bounds)


def test_a_template_of_references_cannot_run_a_command(tmp_path):
    pytest.importorskip("jinja2")
    command = f"open({str(tmp_path / 'ran')!r}, 'w')"
    template = f"{{{{ cycler.__init__.__globals__.__builtins__.{command} }}}}"
    references = {"version": 1, "templates": {"f": template}, "refs": {"a": ["{{f()}}", 0, 1]}}
    (tmp_path / "references.json").write_text(json.dumps(references))
    with pytest.raises(Exception, match="unsafe"):
        fsspec.filesystem("reference", fo=str(tmp_path / "references.json"), simple_templates=False)
    assert not (tmp_path / "ran").exists()
