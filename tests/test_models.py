"""Models built from a peer's configuration: no code, no files, nothing its snapshot has not."""

import argparse
import hashlib
import json
import resource

import pytest
import torch
from test_adapter import LIGHTCONV, LSTM, Student

from fairseq_codistill.tasks import _models

FLAGS = {
    "transformer": [],
    "shared": ["--share-all-embeddings"],
    "learned": ["--encoder-learned-pos", "--decoder-learned-pos"],
    "align": ["--arch", "transformer_align", "--encoder-layers", "1", "--decoder-layers", "4"],
    "lstm": LSTM,
    "lightconv": LIGHTCONV,
    "fconv": ["--arch", "fconv_iwslt_de_en"],
}


@pytest.fixture(scope="module")
def made(corpus):
    return {name: Student(corpus, *flags) for name, flags in FLAGS.items()}


def build(made, config, own="transformer", tensors=None):
    own = made[own]
    like = next(own.model.parameters())
    return _models.build(own.task, own.cfg.model, config, like, tensors)


def described(student):
    return json.loads(json.dumps(_models.describe(student.cfg.model)))


def shapes(state):
    return {name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize("own", ["transformer", "lstm"])
@pytest.mark.parametrize("theirs", FLAGS)
def test_models_of_known_architectures_are_built_on_the_real_device(made, own, theirs):
    state = made[theirs].model.state_dict()
    model = build(made, described(made[theirs]), own, state)
    assert shapes(model.state_dict()) == shapes(state)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    model.load_state_dict(state)
    sample = made[own].sample["net_input"]
    made[theirs].model.eval()
    torch.testing.assert_close(
        model.eval()(**sample)[0], made[theirs].model(**sample)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("arch", ["transformer", "learned"])
def test_a_peers_attention_is_torchs_fused_one_throughout(
    made, monkeypatch, arch, mode, features_only
):
    student, sample = made[arch], made[arch].sample["net_input"]
    model = build(made, described(student), arch)
    model.load_state_dict(student.model.state_dict())
    fused = 0

    def count(*args, _attention=torch.nn.functional.scaled_dot_product_attention, **kwargs):
        nonlocal fused
        fused += 1
        return _attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    getattr(model, mode)()
    torch.manual_seed(1)
    ours = model(**sample, features_only=features_only)[0]
    # A layer of the encoder has one, of the decoder two.
    assert fused == len(model.encoder.layers) + 2 * len(model.decoder.layers)
    getattr(student.model, mode)()
    torch.manual_seed(1)
    theirs = student.model(**sample, features_only=features_only)[0]
    # Dropout too: the same numbers in the same order.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_attention_by_xformers_stays_as_fairseq_has_it(made):
    model = build(made, described(made["transformer"]))
    attention = model.decoder.layers[0].encoder_attn
    attention._forward_pre_hooks.clear()
    attention.use_xformers = True
    _models.fuse_attention(model)
    assert not attention._forward_pre_hooks


TRAP = "__import__('os').mkdir('trapped')"


@pytest.mark.parametrize(
    ("arch", "setting"),
    [
        ("lstm", "decoder_attention"),
        ("lstm", "adaptive_softmax_cutoff"),
        ("fconv", "encoder_layers"),
        ("fconv", "decoder_layers"),
        ("fconv", "decoder_attention"),
        ("transformer", "encoder_xformers_att_config"),
        ("transformer", "decoder_xformers_att_config"),
    ],
)
@pytest.mark.parametrize("own", ["transformer", "same"])
def test_what_fairseq_would_evaluate_is_refused(made, tmp_path, monkeypatch, own, arch, setting):
    monkeypatch.chdir(tmp_path)
    config = described(made[arch]) | {setting: TRAP}
    with pytest.raises(ValueError, match=f"its setting {setting} is .*mkdir"):
        build(made, config, arch if own == "same" else own)
    assert not (tmp_path / "trapped").exists()


def test_fairseq_does_evaluate_it(made, tmp_path, monkeypatch):
    # So that the test above could fail.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_models._peer_config, "check", lambda *_: None)
    # It is built twice.
    with pytest.raises(FileExistsError):
        build(made, described(made["lstm"]) | {"decoder_attention": TRAP})
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": "transformer_from_pretrained_xlm"}, "is neither this group's nor one that is"),
        ({"arch": "fconv_self_att_wp", "pretrained_checkpoint": "x.pt"}, "is neither this group's"),
        ({"arch": "bart_base"}, "is neither this group's"),
        ({"arch": "../transformer"}, "there is no architecture"),
        ({"arch": ["transformer"]}, "there is no architecture"),
        ({"arch": {}}, "there is no architecture"),
        ({"_name": "transformer_align"}, "there is no architecture"),
        ({"encoder_embed_path": "/etc/passwd"}, "encoder_embed_path names a file"),
        ({"encoder_embed_path": "word"}, "encoder_embed_path names a file"),
        ({"pretrained_xlm_checkpoint": "x"}, "has no setting 'pretrained_xlm_checkpoint'"),
        ({"user_dir": "x"}, "has no setting 'user_dir'"),
        ({"data": "x"}, "has no setting 'data'"),
        ({"activation_fn": "${oc.env:HOME}"}, "activation_fn is"),
        ({"activation_fn": "a/b"}, "activation_fn is"),
        ({"activation_fn": "'a/b'"}, "activation_fn is"),
        ({"activation_fn": "x.pt"}, "activation_fn is"),
        ({"activation_fn": "(" * 999}, "activation_fn is"),
        ({"activation_fn": "9**9**9"}, "activation_fn is"),
        ({"activation_fn": ["a/b"]}, "activation_fn is"),
        ({"encoder_layers": 10**9}, "encoder_layers is"),
        ({"encoder_layers": "[" + "9" * 500 + "]"}, "encoder_layers is"),
        ({"encoder_layers_to_keep": [0] * 2000}, "encoder_layers_to_keep is"),
        ({"max_target_positions": 10**7}, "max_target_positions is"),
        ({"max_target_positions": 1e7}, "max_target_positions is"),
        ({"encoder_layers_to_keep": "1e999"}, "encoder_layers_to_keep is"),
        ({"decoder_learned_pos": True, "max_target_positions": 5}, "has learned 5 target pos"),
    ],
)
def test_a_configuration_that_is_no_peers_is_refused(made, changes, reason):
    with pytest.raises(ValueError, match=reason):
        build(made, described(made["transformer"]) | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder_layers": 60000}, "more layers than its snapshot has"),
        ({"decoder_ffn_embed_dim": 60000, "encoder_ffn_embed_dim": 60000}, "names and shapes"),
        ({"decoder_layers": 2}, "names and shapes"),
    ],
)
def test_a_model_larger_than_its_snapshot_is_refused_before_it_has_memory(made, changes, reason):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=reason):
        build(
            made,
            described(made["transformer"]) | changes,
            tensors=made["transformer"].model.state_dict(),
        )
    # Kilobytes.  60000 columns are 4 MB a tensor here; torch's first meta tensor costs more.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_without_the_snapshots_tensors_there_is_a_limit_all_the_same(made):
    with pytest.raises(ValueError, match="more layers"):
        build(made, described(made["transformer"]) | {"decoder_layers": 65536})


def test_a_peer_with_adaptive_softmax_is_refused(made):
    config = described(made["transformer"]) | {"adaptive_softmax_cutoff": [5]}
    with pytest.raises(ValueError, match="adaptive softmax"):
        build(made, config)


def test_what_is_not_a_number_to_json_is_described_by_its_digest(made):
    cfg = argparse.Namespace(**vars(made["transformer"].cfg.model))
    cfg.dropout = float("inf")
    digest = hashlib.sha256(b"inf").hexdigest()
    assert _models.describe(cfg)["dropout"] == {"sha256": digest}
    with pytest.raises(ValueError, match="dropout is told by its digest alone, and this group has"):
        build(made, _models.describe(cfg))
