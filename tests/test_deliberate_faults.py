"""The table of deliberate faults fits the code: each can be made, and its tests are there."""

import ast
import subprocess

import deliberate_faults
import pytest
from deliberate_faults import FAULTS, ROOT, Fault, copy_of


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_be_made_in_one_place(fault):
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1
    # What does not even compile would be seen by any test.
    assert ast.dump(ast.parse(fault.applied(text))) != ast.dump(ast.parse(text))
    assert fault.tests
    for name in fault.tests:
        assert (ROOT / "tests" / f"{name}.py").is_file()


def test_no_two_faults_have_one_name_or_are_the_same():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


def test_a_fault_that_does_not_fit_any_more_says_so():
    fault = Fault("some-fault", "a.py", "x", "y", ("test_a",))
    assert fault.applied("1 x 2") == "1 y 2"
    for text, times in (("none", 0), ("x x", 2)):
        with pytest.raises(ValueError, match=f"fault some-fault: its old text occurs {times} time"):
            fault.applied(text)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A repository of one function that is tested in part."""
    root = tmp_path / "root"
    package = root / "fairseq_codistill"
    (root / "tests").mkdir(parents=True)
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("def add(a, b):\n    return a + b * 1\n")
    (root / "tests" / "test_sums.py").write_text(
        "from fairseq_codistill.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    )
    (root / ".gitignore").write_text("large/\n")
    (root / "large").mkdir()
    (root / "large" / "data").write_text("not to be copied")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    monkeypatch.setattr(deliberate_faults, "ROOT", root)
    return root


def fault_of(name, old, new):
    return Fault(name, "fairseq_codistill/sums.py", old, new, ("test_sums",))


def test_what_is_seen_and_what_survives_is_told_and_the_code_stays_as_it_is(
    small, monkeypatch, capsys
):
    seen, unseen = fault_of("minus", "a + b", "a - b"), fault_of("times", "b * 1", "b * 1 * 1")
    before = (small / "fairseq_codistill" / "sums.py").read_text()
    monkeypatch.setattr(deliberate_faults, "FAULTS", [seen, unseen])
    assert deliberate_faults.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "killed    minus by test_sums.py::test_add",
        "SURVIVED  times (test_sums)",
        "1 of 2 faults killed",
    ]
    assert deliberate_faults.main(["minus"]) == 0
    assert (small / "fairseq_codistill" / "sums.py").read_text() == before


def test_tests_that_fail_without_a_fault_tell_nothing(small, monkeypatch, capsys):
    (small / "tests" / "test_sums.py").write_text("def test_add():\n    assert False\n")
    monkeypatch.setattr(deliberate_faults, "FAULTS", [fault_of("minus", "a + b", "a - b")])
    assert deliberate_faults.main([]) == 2
    assert "tests/test_sums.py fails without any fault" in capsys.readouterr().out


def test_a_copy_has_what_git_would_have(small, tmp_path):
    copy_of(small, tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == {"__init__.py", "sums.py", "test_sums.py", ".gitignore"}
