"""Exported checkpoints: stock fairseq reads them, and translates as before."""

import os
import pickle
import random
import subprocess
import zipfile

import pytest
import torch
from harness import BIN, CODISTILL, SETTINGS, environment

from fairseq_codistill import cli

SMALL = """
    --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16
    --encoder-attention-heads 2 --decoder-attention-heads 2
""".split()
SMALL_LSTM = """
    --encoder-embed-dim 16 --encoder-hidden-size 16
    --decoder-embed-dim 16 --decoder-hidden-size 16 --decoder-out-embed-dim 16
""".split()
SMALL_LIGHTCONV = [
    *[*SMALL, "--encoder-layers", "2", "--decoder-layers", "2"],
    *["--encoder-conv-dim", "16", "--encoder-kernel-size-list", "[3,5]"],
    *["--decoder-conv-dim", "16", "--decoder-kernel-size-list", "[3,5]"],
]
PLAIN_TYPES = (str, int, float, bool, type(None), torch.Tensor)


def train(corpus, folder, *flags):
    command = [
        *[str(BIN / "fairseq-train"), str(corpus), *CODISTILL, *SETTINGS],
        *["--max-update", "3", "--disable-validation", "--save-dir", str(folder), *flags],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return folder / "checkpoint_last.pt"


def translate(corpus, checkpoint, *flags):
    command = [
        *[str(BIN / "fairseq-generate"), str(corpus), "--path", str(checkpoint), "--cpu"],
        *["--beam", "2", "--max-len-b", "20", *flags],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    hypotheses = [line for line in done.stdout.splitlines() if line[:2] in ("H-", "P-")]
    assert hypotheses
    return hypotheses


def assert_plain(value, where="state"):
    """No object but tensors and plain containers, and no name of ours, anywhere."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert "codistill" not in str(key), where
            assert_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            assert_plain(item, where)
    else:
        assert isinstance(value, PLAIN_TYPES), f"{where}: {type(value)}"
        assert "codistill_" not in str(value), where


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("transformer_iwslt_de_en", [*SMALL, "--share-all-embeddings"]),
        # The name of the architecture is here also that of a model with a dataclass.
        pytest.param("transformer", [*SMALL, "--label-smoothing", "0.1"], marks=pytest.mark.full),
        pytest.param("lstm", SMALL_LSTM, marks=pytest.mark.full),
        pytest.param("lightconv_iwslt_de_en", SMALL_LIGHTCONV, marks=pytest.mark.full),
    ],
)
def test_stock_fairseq_translates_as_before(tmp_path, corpus, arch, flags):
    checkpoint = train(corpus, tmp_path / "run", "--arch", arch, *flags)
    new = tmp_path / "elsewhere" / "stock.pt"
    assert cli.main(["export", str(checkpoint), str(new)]) == 0
    # In a process of its own: no other test's safe globals.
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=True)"
    subprocess.run([str(BIN / "python"), "-c", code, str(new)], check=True)
    state = torch.load(new, weights_only=True)
    assert_plain({key: value for key, value in state.items() if key != "model"})
    assert state["last_optimizer_state"] is None
    assert state["cfg"]["task"]["_name"] == "translation"
    smoothed = "--label-smoothing" in flags
    expected = "label_smoothed_cross_entropy" if smoothed else "cross_entropy"
    assert state["cfg"]["criterion"]["_name"] == expected
    if smoothed:
        assert state["cfg"]["criterion"]["label_smoothing"] == 0.1
    assert new.stat().st_size < checkpoint.stat().st_size
    assert list(new.parent.iterdir()) == [new]
    before = translate(corpus, checkpoint, *CODISTILL[:4])
    assert translate(corpus, new, "--task", "translation") == before


@pytest.mark.full
def test_stock_fairseq_trains_on(tmp_path, corpus):
    checkpoint = train(corpus, tmp_path / "run", "--arch", "transformer", *SMALL)
    new = tmp_path / "stock.pt"
    assert cli.main(["export", str(checkpoint), str(new)]) == 0
    command = [
        *[str(BIN / "fairseq-train"), str(corpus), "--task", "translation", "--arch"],
        *["transformer", *SMALL, *SETTINGS, "--restore-file", str(new), "--reset-optimizer"],
        *["--reset-dataloader", "--save-dir", str(tmp_path / "on"), "--max-update", "5"],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Loaded checkpoint" in done.stdout + done.stderr


def test_refusals(tmp_path, capsys):
    def refusal(*arguments):
        assert cli.main(["export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    new = tmp_path / "new.pt"
    assert "is not there" in refusal(tmp_path / "absent.pt", new)
    (tmp_path / "torn.pt").write_bytes(b"PK not a checkpoint")
    assert "is torn" in refusal(tmp_path / "torn.pt", new)
    for number, state in enumerate(
        [{"cfg": {"task": {"_name": "translation"}}}, {"cfg": None}, {"weights": 1}, [1]]
    ):
        stock = tmp_path / f"stock{number}.pt"
        torch.save(state, stock)
        assert "--task codistill_translation" in refusal(stock, new)
    assert "already there" in refusal(tmp_path / "stock0.pt", tmp_path / "torn.pt")
    assert not new.exists()


def refused(capsys, checkpoint, new) -> str:
    """What export says of a file that it refuses; it says it in one line."""
    assert cli.main(["export", str(checkpoint), str(new)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"codistill: error: CHECKPOINT {checkpoint} ")
    assert said.count("\n") == 1
    assert not new.exists()
    return said


def test_whatever_is_damaged_is_refused_with_a_sentence(tmp_path, capsys):
    """Bytes of the zip directory, among others the flag of encryption and the method."""
    path = tmp_path / "checkpoint_last.pt"
    torch.save({"cfg": {"task": {"_name": "translation"}}, "w": torch.ones(9)}, path)
    whole = path.read_bytes()
    rng = random.Random(1)
    first = whole.index(b"PK\1\2")
    for place in [*range(first, first + 60), *rng.sample(range(first, len(whole)), 60)]:
        data = bytearray(whole)
        data[place] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        said = refused(capsys, path, tmp_path / "new.pt")
        # Times and versions mean nothing: it is whole, and has another task.
        assert "is torn" in said or "was not trained with" in said


def test_what_is_no_file_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    for path in (tmp_path, *sorted(tmp_path.glob("*.pt"))):
        assert "is torn, no checkpoint" in refused(capsys, path, tmp_path / "new")


@pytest.mark.parametrize(
    "stream",
    [
        *[
            b"",
            b"\x80\x02.",
            b"\x80\x02N0.",
            b"\x80\x02K\1K\2s.",
            b"\x80\x02h\x07.",
            b"\x80\x02K\1R.",
        ],
        *[b"\x80\x02(K\1K\2K\3d.", b"\x80\x02K\1Q.", pickle.dumps({1, 2}, 4), b"\x80\xff."],
    ],
)
def test_a_whole_file_with_a_wrong_pickle_is_refused(tmp_path, capsys, stream):
    path = tmp_path / "checkpoint_last.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": stream, "byteorder": b"little", "version": b"3"}.items():
            archive.writestr(f"archive/{name}", content)
    refused(capsys, path, tmp_path / "new.pt")
