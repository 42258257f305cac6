"""Which checkpoint a group continues from."""

import os
from pathlib import Path

import pytest
import torch

from fairseq_codistill.launch.checkpoints import find, is_loadable, prepare


def save(path: Path, time: int, keep: float = 1.0) -> Path:
    """A checkpoint with a time stamp, of which only the part ``keep`` was written."""
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": {"w": torch.arange(1000.0)}}, path)
    os.truncate(path, int(path.stat().st_size * keep))
    os.utime(path, (time, time))
    return path


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_file_is_not_loadable(tmp_path, keep):
    assert is_loadable(save(tmp_path / "whole.pt", 1))
    assert not is_loadable(save(tmp_path / "torn.pt", 1, keep))
    assert not is_loadable(tmp_path / "absent.pt")


def test_a_flipped_byte_is_found(tmp_path):
    path = save(tmp_path / "checkpoint_last.pt", 1)
    data = bytearray(path.read_bytes())
    # In the middle lie the weights.
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not is_loadable(path)


def test_nothing_to_continue_from(tmp_path):
    assert prepare(tmp_path / "absent").checkpoint is None


def test_takes_the_last_one(tmp_path):
    save(tmp_path / "checkpoint1.pt", 10)
    last = save(tmp_path / "checkpoint_last.pt", 10)
    save(tmp_path / "checkpoint.avg10.pt", 99)
    assert prepare(tmp_path).checkpoint == last


def test_moves_a_torn_last_one_aside_and_takes_the_next(tmp_path):
    save(tmp_path / "checkpoint1.pt", 10)
    newest = save(tmp_path / "checkpoint_1_20.pt", 20)
    save(tmp_path / "checkpoint_best.pt", 25, 0.5)
    last = save(tmp_path / "checkpoint_last.pt", 30, 0.5)
    torn_bytes = last.read_bytes()
    assert find(tmp_path).checkpoint == newest
    assert last.exists()
    resume = prepare(tmp_path)
    assert resume.checkpoint == newest
    assert resume.torn == tmp_path / "checkpoint_last.pt.torn"
    assert resume.torn.read_bytes() == torn_bytes
    # Nothing is ever lost, not even a torn file.
    save(tmp_path / "checkpoint_last.pt", 40, 0.2)
    assert prepare(tmp_path).torn == tmp_path / "checkpoint_last.pt.torn-2"
    assert resume.torn.read_bytes() == torn_bytes
    assert prepare(tmp_path).torn is None


def test_a_process_killed_before_the_copy(tmp_path):
    last = save(tmp_path / "checkpoint_last.pt", 10)
    newer = save(tmp_path / "checkpoint_2_40.pt", 20)
    resume = prepare(tmp_path)
    assert resume.checkpoint == newer
    assert last.exists()
