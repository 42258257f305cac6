"""The same from fairseq-hydra-train: a YAML that names task and criterion, and overrides."""

import subprocess
from pathlib import Path

import pytest
import yaml
from harness import BIN, CODISTILL, PLUGIN, SEED_STEP, SETTINGS, Run, environment, equal, train

ADAM = "--optimizer adam --lr 0.01".split()

# The flags of SETTINGS and ADAM.  (fairseq's sgd cannot be configured by Hydra.)
CONFIG = {
    "common": {"seed": 1, "cpu": True, "log_interval": 1, "log_format": "json"},
    "checkpoint": {"no_epoch_checkpoints": True},
    "task": {"_name": "codistill_translation", "codistill_interval": 5},
    "criterion": {"_name": "codistill_cross_entropy"},
    "dataset": {"max_tokens": 300, "num_workers": 0, "data_buffer_size": 0},
    "optimization": {"max_update": 20, "lr": [0.01]},
    "optimizer": {"_name": "adam"},
    "lr_scheduler": {"_name": "fixed"},
    "model": {
        "_name": "transformer_iwslt_de_en",
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_embed_dim": 16,
        "decoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "decoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "dropout": 0.0,
        "share_all_embeddings": True,
    },
}


def hydra_train(tmp_path: Path, corpus: Path, folder: Path, *overrides: str):
    """Start fairseq-hydra-train on CONFIG."""
    (tmp_path / "conf").mkdir(exist_ok=True)
    (tmp_path / "conf" / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    folder.mkdir()
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(
            [
                *[str(BIN / "fairseq-hydra-train"), "--config-dir", str(tmp_path / "conf")],
                *["--config-name", "tiny", f"common.user_dir={PLUGIN}", f"++task.data={corpus}"],
                *[f"checkpoint.save_dir={folder}", f"hydra.run.dir={folder}/hydra", *overrides],
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )


def ended(process, folder, status=0) -> Run:
    assert process.wait(timeout=300) == status, (folder / "log.txt").read_text()[-3000:]
    return Run(folder, (folder / "log.txt").read_text())


def test_two_groups_codistil(corpus, tmp_path):
    shared = [
        "++task.codistill_num_groups=2",
        f"++task.codistill_dir={tmp_path}/exchange",
        "++task.codistill_mode=lockstep",
        "++task.codistill_snapshot_dtype=float32",
    ]
    folders = [tmp_path / "0", tmp_path / "1"]
    processes = [
        hydra_train(
            tmp_path,
            corpus,
            folder,
            *[*shared, f"++task.codistill_group={i}", f"++common.seed={1 + SEED_STEP * i}"],
        )
        for i, folder in enumerate(folders)
    ]
    runs = [ended(p, folder) for p, folder in zip(processes, folders, strict=True)]
    for run in runs:
        assert run.lines()[-1]["codistill_peers"] == 1
        assert run.lines()[-1]["codistill_loss"] > 0
    assert (tmp_path / "exchange" / "group-1" / "0000000020.json").exists()


def test_one_group_is_the_same_from_either_command(corpus, tmp_path):
    run = ended(hydra_train(tmp_path, corpus, tmp_path / "hydra"), tmp_path / "hydra")
    model = [
        *"--arch transformer_iwslt_de_en --encoder-layers 1 --decoder-layers 1".split(),
        *"--encoder-attention-heads 2 --decoder-attention-heads 2 --dropout 0".split(),
        *"--encoder-embed-dim 16 --decoder-embed-dim 16 --share-all-embeddings".split(),
        *"--encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32".split(),
    ]
    same = train(corpus, tmp_path / "train", *CODISTILL, *SETTINGS, *model, *ADAM)
    assert equal(run.weights(), same.weights())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["++task.codistill_num_groups=2"], "--codistill-dir is missing"),
        (["criterion._name=cross_entropy"], "--criterion cross_entropy does not codistil"),
    ],
)
def test_bad_input_is_a_sentence_here_too(corpus, tmp_path, overrides, says):
    process = hydra_train(tmp_path, corpus, tmp_path / "0", *overrides)
    run = ended(process, tmp_path / "0", status=2)
    assert says in run.log
