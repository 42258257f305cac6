"""Export of every architecture of fairseq's translation family, and of users' own.

What is exported is translated with by fairseq without the plugin, and scored by CTranslate2.
"""

import argparse
import math
import subprocess
import sys

import ctranslate2
import pytest
import torch
from exported import (
    SMALL_DYNAMIC,
    SMALL_FCONV,
    SMALL_ONE_LAYER,
    SMALL_SELF_ATTENTION,
    load,
    refusal,
    write_untrained,
)
from fairseq import utils
from fairseq.models import ARCH_MODEL_REGISTRY
from harness import BIN, CODISTILL, PLUGIN, environment
from test_export import SMALL, SMALL_LIGHTCONV, SMALL_LSTM, assert_plain, train, translate
from test_hydra import ended, hydra_train

from fairseq_codistill import cli
from fairseq_codistill.export import stock

OWN = "OWN"  # Stands for the user directory below.

# Whether CTranslate2 takes it, the architecture, its flags.
TABLE = {
    "transformer": (True, "transformer", SMALL),
    "transformer, sizes of a flag": (True, "transformer_iwslt_de_en", SMALL),
    "own sizes of a transformer": (True, "own_sizes", ["--user-dir", OWN]),
    "own sizes of bart": (True, "own_bart", ["--user-dir", OWN]),
    "lstm": (False, "lstm", SMALL_LSTM),
    "own sizes of an lstm": (False, "own_lstm", ["--user-dir", OWN]),
    "fconv": (False, "fconv", SMALL_FCONV),
    "fconv with self-attention": (False, "fconv_self_att", SMALL_SELF_ATTENTION),
    "lightconv": (False, "lightconv_iwslt_de_en", SMALL_LIGHTCONV),
    "lightconv of one layer": (False, "lightconv", SMALL_ONE_LAYER),
    "dynamicconv": (False, "lightconv_iwslt_de_en", SMALL_DYNAMIC),
    "bart": (True, "bart_base", SMALL),
    "align": (True, "transformer_align", [*SMALL, "--alignment-layer", "0"]),
}
IN_CI = {"own sizes of a transformer", "bart"}

OWN_CODE = """
import fairseq_codistill.tasks.codistill_translation as plugin
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart import bart_base_architecture
from fairseq.models.lstm import base_architecture as lstm_architecture
from fairseq.models.transformer import TransformerDecoder, TransformerModel, base_architecture
from fairseq.tasks import register_task


def sizes(args):
    for side in ("encoder", "decoder"):
        for name, size in {"embed_dim": 16, "ffn_embed_dim": 16, "layers": 2}.items():
            setattr(args, f"{side}_{name}", getattr(args, f"{side}_{name}", size))
        setattr(args, f"{side}_attention_heads", 2)


@register_model_architecture("transformer", "own_sizes")
def own_sizes(args):
    # What no tensor shows: whether the norms come before, and the activation.
    args.encoder_normalize_before = args.decoder_normalize_before = True
    args.activation_fn = "gelu"
    sizes(args)
    base_architecture(args)


@register_model_architecture("bart", "own_bart")
def own_bart(args):
    sizes(args)
    bart_base_architecture(args)


@register_model_architecture("lstm", "own_lstm")
def own_lstm(args):
    for name in ("encoder_embed_dim", "encoder_hidden_size", "decoder_out_embed_dim"):
        setattr(args, name, 16)
    args.decoder_embed_dim = args.decoder_hidden_size = 16
    # What no tensor shows: the encoder reads from both ends.
    args.encoder_bidirectional = True
    lstm_architecture(args)


@register_model_architecture("transformer", "own_setting")
def own_setting(args):
    args.scale_attn = True  # no flag of fairseq's has it
    own_sizes(args)


class Loud(TransformerDecoder):
    def forward(self, prev_output_tokens, features_only=False, **others):
        x, extra = super().forward(prev_output_tokens, features_only=features_only, **others)
        return (x if features_only else x * 4.0), extra


@register_model("loud")
class Own(TransformerModel):
    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return Loud(args, tgt_dict, embed_tokens)


@register_model_architecture("loud", "own_model")
def own_model(args):
    own_sizes(args)


@register_task("own_task", dataclass=plugin.CodistillTranslationConfig)
class OwnTask(plugin.CodistillTranslationTask):
    pass
"""


@pytest.fixture(scope="session")
def own_user_dir(tmp_path_factory):
    """A user directory with architectures, a model and a task of its own, and the plugin."""
    folder = tmp_path_factory.mktemp("own") / "own_user_dir"
    folder.mkdir()
    (folder / "__init__.py").write_text(OWN_CODE)
    return folder


@pytest.fixture
def untrained(corpus, tmp_path, own_user_dir):
    """Write the checkpoint of an untrained model, given its flags."""
    utils.import_user_module(argparse.Namespace(user_dir=str(own_user_dir)))
    return lambda *flags: write_untrained(corpus, tmp_path, *flags)


def assert_scored_alike(corpus, directory, lines):
    """CTranslate2 gives fairseq's translations the scores that fairseq gave them."""
    texts = {line[2:].split("\t")[0]: line.split("\t")[2] for line in lines if line[0] == "H"}
    scores = {line[2:].split("\t")[0]: line.split("\t")[1] for line in lines if line[0] == "P"}
    source = (corpus.parent / "test.de").read_text().splitlines()
    numbers = sorted(texts, key=int)[:30]
    translator = ctranslate2.Translator(str(directory), device="cpu", intra_threads=1)
    results = translator.score_batch(
        [source[int(number)].split() for number in numbers],
        [texts[number].split() for number in numbers],
    )
    for number, result in zip(numbers, results, strict=True):
        # fairseq prints them to the base of 2.
        expected = [float(score) * math.log(2) for score in scores[number].split()]
        assert result.log_probs == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "name",
    [name if name in IN_CI else pytest.param(name, marks=pytest.mark.full) for name in TABLE],
)
def test_stock_fairseq_and_ctranslate2_give_the_same(tmp_path, corpus, own_user_dir, capsys, name):
    fits, arch, flags = TABLE[name]
    flags = [str(own_user_dir) if flag == OWN else flag for flag in flags]
    own = ["--user-dir", str(own_user_dir)] if "--user-dir" in flags else []
    checkpoint = train(corpus, tmp_path / "run", "--arch", arch, *flags)
    before = translate(corpus, checkpoint, *CODISTILL[:4], *own)

    new = tmp_path / "stock.pt"
    assert cli.main(["export", str(checkpoint), str(new), *own]) == 0
    assert "fairseq loads it without the plugin" in capsys.readouterr().out
    assert_plain(
        {key: v for key, v in torch.load(new, weights_only=True).items() if key != "model"}
    )
    assert translate(corpus, new, "--task", "translation") == before

    # From what training wrote, and from what has been exported.
    for number, (path, user_dir) in enumerate([(checkpoint, own), (new, [])]):
        arguments = [path, tmp_path / f"ct2-{number}", *user_dir]
        arguments += ["--format", "ctranslate2", "--data", corpus]
        if fits:
            assert cli.main(["export", *map(str, arguments)]) == 0
            assert_scored_alike(corpus, tmp_path / f"ct2-{number}", before)
        else:
            assert "CTranslate2 cannot take its model" in refusal(capsys, *arguments)


@pytest.mark.full
def test_what_hydra_has_trained(tmp_path, corpus):
    """Its checkpoint has the model's settings in a dictionary and not in a namespace."""
    run = ended(hydra_train(tmp_path, corpus, tmp_path / "run"), tmp_path / "run")
    trained, new = run.folder / "checkpoint_last.pt", tmp_path / "stock.pt"
    before = translate(corpus, trained, *CODISTILL[:4])
    assert cli.main(["export", str(trained), str(new)]) == 0
    assert translate(corpus, new, "--task", "translation") == before
    arguments = ["--format", "ctranslate2", "--data", str(corpus)]
    assert cli.main(["export", str(trained), str(tmp_path / "ct2"), *arguments]) == 0
    assert_scored_alike(corpus, tmp_path / "ct2", before)


@pytest.mark.full
def test_a_process_that_has_the_plugin_proves_nothing(untrained, tmp_path, capsys, monkeypatch):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "new"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import fairseq_codistill\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{PLUGIN.parent}")
    said = refusal(capsys, checkpoint, new)
    assert (
        "fairseq without the plugin does not load it: it failed with status 1 (the plugin" in said
    )


def test_a_model_of_the_users_own_is_refused(untrained, own_user_dir, tmp_path, capsys):
    checkpoint = untrained("--arch", "own_model", "--user-dir", str(own_user_dir))
    new = tmp_path / "new"
    # As in a process that does not have the user directory.
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(ARCH_MODEL_REGISTRY, "own_model")
        said = refusal(capsys, checkpoint, new)
    assert "own_model is not fairseq's own" in said
    assert f"give --user-dir, the directory that registers it (training had {own_user_dir})" in said
    said = refusal(capsys, checkpoint, new, "--user-dir", own_user_dir)
    assert "own_user_dir.Own, is not fairseq's own" in said
    said = refusal(capsys, checkpoint, new, "--user-dir", tmp_path / "absent")
    assert "absent is not a directory" in said


@pytest.mark.full
def test_a_user_dir_that_changes_fairseqs_model_is_refused(untrained, tmp_path):
    """The architecture has fairseq's name, but fairseq alone computes something else with it."""
    checkpoint = untrained("--arch", "transformer", *SMALL)
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "__init__.py").write_text(
        "from fairseq.models.transformer import TransformerDecoderBase as Decoder\n"
        "plain = Decoder.output_layer\n"
        "Decoder.output_layer = lambda self, features: 4.0 * plain(self, features)\n"
    )
    done = subprocess.run(
        [
            *[str(BIN / "codistill"), "export", str(checkpoint), str(tmp_path / "new")],
            *["--user-dir", str(tmp_path / "loud")],
        ],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 2
    assert "fairseq without the plugin gives other outputs" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_user_dir_that_does_not_know_it_or_fails_is_refused(untrained, tmp_path, capsys):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "n"
    state = load(checkpoint)
    vars(state["cfg"]["model"]).update(arch="unheard_of", _name="unheard_of")
    torch.save(state, checkpoint)
    for name, code, expected in [
        ("knows_nothing", "", "registers no architecture unheard_of"),
        ("is_broken", "1 / 0", "cannot be imported (ZeroDivisionError"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        assert expected in refusal(capsys, checkpoint, new, "--user-dir", tmp_path / name)


def test_a_task_built_on_ours_is_no_stock_task(untrained, tmp_path, capsys):
    checkpoint = untrained("--arch", "transformer", *SMALL, "--task", "own_task")
    said = refusal(capsys, checkpoint, tmp_path / "new")
    assert "--task own_task, which is built on it" in said
    assert "a stock checkpoint" not in said


def test_an_export_that_computes_something_else_is_refused(
    untrained, tmp_path, capsys, monkeypatch
):
    """A deliberate fault: a setting that no tensor shows is lost on the way."""
    checkpoint = untrained("--arch", "transformer", *SMALL)
    right = stock.with_settings_as_mappings

    def wrong(trained):
        state = right(trained)
        state["cfg"]["model"]["activation_fn"] = "gelu"
        return state

    monkeypatch.setattr(stock, "with_settings_as_mappings", wrong)
    monkeypatch.setattr(stock, "with_settings_as_attributes", wrong)
    said = refusal(capsys, checkpoint, tmp_path / "new")
    assert "fairseq without the plugin gives other outputs" in said


def test_ctranslate2_that_loses_a_setting_is_refused(
    untrained, corpus, own_user_dir, tmp_path, capsys
):
    """Its converter passes over the norms that --scale-attn adds, without a word."""
    checkpoint = untrained("--arch", "own_setting")
    arguments = ["--user-dir", own_user_dir, "--format", "ctranslate2", "--data", corpus]
    said = refusal(capsys, checkpoint, tmp_path / "new", *arguments)
    assert "CTranslate2 gives other outputs for its model, transformer" in said


@pytest.mark.full
@pytest.mark.parametrize("arch", ["own_setting", "own_bart"])
def test_settings_that_no_flag_has_are_kept(untrained, own_user_dir, tmp_path, arch):
    checkpoint, new = untrained("--arch", arch), tmp_path / "new.pt"
    arguments = [str(checkpoint), str(new), "--user-dir", str(own_user_dir)]
    assert cli.main(["export", *arguments]) == 0
    assert vars(torch.load(new, weights_only=True)["args"])["user_dir"] is None


def test_the_files_that_training_began_from_are_not_needed(untrained, corpus, tmp_path):
    words = (corpus / "dict.de.txt").read_text().split()[::2]
    lines = [f"{word} {' '.join(['0.5'] * 16)}\n" for word in words]
    (tmp_path / "vectors").write_text("".join([f"{len(lines)} 16\n", *lines]))
    checkpoint = untrained(
        *["--arch", "lstm", *SMALL_LSTM, "--encoder-embed-path", str(tmp_path / "vectors")]
    )
    (tmp_path / "vectors").unlink()
    new = tmp_path / "new.pt"
    assert cli.main(["export", str(checkpoint), str(new)]) == 0
    assert torch.load(new, weights_only=True)["cfg"]["model"]["encoder_embed_path"] is None


def test_ctranslate2_needs_itself_and_the_dictionaries(
    untrained, corpus, tmp_path, capsys, monkeypatch
):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "new"
    wanted = [checkpoint, new, "--format", "ctranslate2"]
    assert "needs --data DATA_BIN" in refusal(capsys, *wanted)
    assert "is not a directory" in refusal(capsys, *wanted, "--data", tmp_path / "absent")
    languages = ["-s", "de", "-t", "en"]
    assert "has no dict.de.txt" in refusal(
        capsys, *wanted, "--data", tmp_path, "-s", "de", "-t", "en"
    )
    longer = (corpus / "dict.de.txt").read_text() + "Zoo 1\n"
    for language in ("de", "en"):
        (tmp_path / f"dict.{language}.txt").write_text(longer)
    said = refusal(capsys, *wanted, "--data", tmp_path, *languages)
    trained_with = longer.count("\n") - 1 + 4  # and the special symbols
    assert f"has {trained_with + 1} symbols, and the model was trained with {trained_with}" in said
    (tmp_path / "dict.de.txt").write_text("no numbers here\n")
    said = refusal(capsys, *wanted, "--data", tmp_path, *languages)
    assert "dict.de.txt is no dictionary" in said
    assert "belongs to --format ctranslate2" in refusal(capsys, checkpoint, new, "--data", corpus)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    said = refusal(capsys, *wanted, "--data", corpus)
    assert "pip install 'fairseq-codistill[ctranslate2]'" in said
