"""Export of every architecture of fairseq's translation family, and of users' own.

What is exported is translated with by fairseq without the plugin, and scored by CTranslate2.
"""

import argparse
import math
import sys

import ctranslate2
import pytest
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from harness import CODISTILL, PLUGIN, SETTINGS
from omegaconf import OmegaConf
from test_export import SMALL, SMALL_LIGHTCONV, SMALL_LSTM, assert_plain, train, translate

from fairseq_codistill import cli
from fairseq_codistill.export import stock

SMALL_FCONV = """
    --encoder-embed-dim 16 --decoder-embed-dim 16 --decoder-out-embed-dim 16
    --encoder-layers [(16,3)]*2 --decoder-layers [(16,3)]*2
""".split()
DYNAMIC = "--encoder-conv-type dynamic --decoder-conv-type dynamic".split()
ONE_LAYER = """
    --encoder-layers 1 --decoder-layers 1
    --encoder-kernel-size-list [3] --decoder-kernel-size-list [3]
""".split()
OWN = "OWN"  # Stands for the user directory below.

# Whether CTranslate2 takes it, the architecture, its flags.
TABLE = {
    "transformer": (True, "transformer", SMALL),
    "transformer, sizes of a flag": (True, "transformer_iwslt_de_en", SMALL),
    "own sizes of a transformer": (True, "own_sizes", ["--user-dir", OWN]),
    "own sizes of bart": (True, "own_bart", ["--user-dir", OWN]),
    "lstm": (False, "lstm", SMALL_LSTM),
    "fconv": (False, "fconv", SMALL_FCONV),
    "lightconv": (False, "lightconv_iwslt_de_en", SMALL_LIGHTCONV),
    "lightconv of one layer": (False, "lightconv", [*SMALL_LIGHTCONV, *ONE_LAYER]),
    "dynamicconv": (False, "lightconv_iwslt_de_en", [*SMALL_LIGHTCONV, *DYNAMIC]),
    "bart": (True, "bart_base", SMALL),
    "align": (True, "transformer_align", [*SMALL, "--alignment-layer", "0"]),
}
IN_CI = {"own sizes of a transformer", "bart"}

OWN_CODE = """
import fairseq_codistill.tasks.codistill_translation as plugin
from fairseq.models import register_model, register_model_architecture
from fairseq.models.bart import bart_base_architecture
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
    """Make the checkpoint of an untrained model, as fairseq-train would."""
    for folder in (PLUGIN, own_user_dir):
        utils.import_user_module(argparse.Namespace(user_dir=str(folder)))

    def make(*flags, name="checkpoint_last.pt", **changed):
        line = [str(corpus), *SETTINGS, *CODISTILL, *flags]
        cfg = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(options.get_training_parser(), line)
        )
        torch.manual_seed(1)
        model = tasks.setup_task(cfg.task).build_model(cfg.model)
        state = {
            "args": None,
            "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
            "model": model.state_dict(),
            "optimizer_history": [
                {
                    "criterion_name": "CodistillCrossEntropyCriterion",
                    "optimizer_name": "SGD",
                    "lr_scheduler_state": {},
                    "num_updates": 3,
                }
            ],
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 3}},
            "last_optimizer_state": None,
        }
        torch.save({**state, **changed}, tmp_path / name)
        return tmp_path / name

    return make


def refusal(capsys, *arguments) -> str:
    """What export says when it refuses; it says it in one line, and writes nothing."""
    new = arguments[1]
    before = sorted(new.parent.iterdir()) if new.parent.is_dir() else None
    assert cli.main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("codistill: error: ")
    assert (sorted(new.parent.iterdir()) if new.parent.is_dir() else None) == before
    return said


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


def test_a_model_of_the_users_own_is_refused(untrained, own_user_dir, tmp_path, capsys):
    checkpoint = untrained("--arch", "own_model", "--user-dir", str(own_user_dir))
    new = tmp_path / "new"
    # As in a process that does not have the user directory.
    from fairseq.models import ARCH_MODEL_REGISTRY

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(ARCH_MODEL_REGISTRY, "own_model")
        said = refusal(capsys, checkpoint, new)
    assert "own_model is not fairseq's own" in said
    assert f"give --user-dir, the directory that registers it (training had {own_user_dir})" in said
    said = refusal(capsys, checkpoint, new, "--user-dir", own_user_dir)
    assert "own_user_dir.Own, is not fairseq's own" in said
    said = refusal(capsys, checkpoint, new, "--user-dir", tmp_path / "absent")
    assert "absent is not a directory" in said


def test_a_user_dir_that_does_not_know_it_or_fails_is_refused(untrained, tmp_path, capsys):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "n"
    state = torch_load(checkpoint)
    vars(state["cfg"]["model"]).update(arch="unheard_of", _name="unheard_of")
    torch.save(state, checkpoint)
    for name, code, expected in [
        ("knows_nothing", "", "registers no architecture unheard_of"),
        ("is_broken", "1 / 0", "cannot be imported (ZeroDivisionError"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        assert expected in refusal(capsys, checkpoint, new, "--user-dir", tmp_path / name)


def torch_load(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def test_a_task_built_on_ours_is_no_stock_task(untrained, tmp_path, capsys):
    checkpoint = untrained("--arch", "transformer", *SMALL, "--task", "own_task")
    said = refusal(capsys, checkpoint, tmp_path / "new")
    assert "--task own_task, which is built on it" in said
    assert "a stock checkpoint" not in said


def test_parts_that_are_missing_are_named(untrained, tmp_path, capsys):
    checkpoint = untrained("--arch", "transformer", *SMALL)
    whole, new = torch_load(checkpoint), tmp_path / "new"
    for section in ("model", "criterion", "common"):
        torch.save({**whole, "cfg": {**whole["cfg"], section: None}}, checkpoint)
        assert f"has no cfg.{section}" in refusal(capsys, checkpoint, new)
    torch.save({**whole, "model": {}}, checkpoint)
    assert "has no model" in refusal(capsys, checkpoint, new)
    torch.save({**whole, "model": {"a": 1}}, checkpoint)
    assert "more than tensors" in refusal(capsys, checkpoint, new)
    torch.save({**whole, "model": {"a": torch.ones(1)}}, checkpoint)
    assert "no embeddings" in refusal(capsys, checkpoint, new)
    weights = {**whole["model"]}
    del weights["decoder.layers.0.fc1.weight"]
    torch.save({**whole, "model": weights}, checkpoint)
    assert "cannot build its model (RuntimeError" in refusal(capsys, checkpoint, new)


@pytest.mark.parametrize("arguments", [[], ["--format", "ctranslate2"]])
def test_what_cannot_be_written_is_refused(untrained, corpus, tmp_path, capsys, arguments):
    checkpoint = untrained("--arch", "transformer", *SMALL)
    (tmp_path / "file").write_text("")
    arguments = [*arguments, *(["--data", corpus] if arguments else [])]
    for new in ("file/new", "file/deeper/new"):
        said = refusal(capsys, checkpoint, tmp_path / new, *arguments)
        assert "cannot be written" in said
        assert f"{tmp_path / 'file'} is not a directory" in said
    assert "cannot be written" in refusal(capsys, checkpoint, tmp_path / ("n" * 300), *arguments)
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "already there" in refusal(capsys, checkpoint, tmp_path / "dangling", *arguments)


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
    assert str(tmp_path / "vectors") not in str(torch.load(new, weights_only=True)["cfg"])


def test_ctranslate2_needs_itself_and_the_dictionaries(
    untrained, corpus, other_vocabulary, tmp_path, capsys, monkeypatch
):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "new"
    wanted = [checkpoint, new, "--format", "ctranslate2"]
    assert "needs --data DATA_BIN" in refusal(capsys, *wanted)
    assert "is not a directory" in refusal(capsys, *wanted, "--data", tmp_path / "absent")
    languages = ["-s", "de", "-t", "en"]
    assert "has no dict.de.txt" in refusal(
        capsys, *wanted, "--data", tmp_path, "-s", "de", "-t", "en"
    )
    said = refusal(capsys, *wanted, "--data", other_vocabulary)
    assert "has 49 symbols, and the model was trained with 48" in said
    (tmp_path / "dict.de.txt").write_text("no numbers here\n")
    said = refusal(capsys, *wanted, "--data", tmp_path, *languages)
    assert "dict.de.txt is no dictionary" in said
    assert "belongs to --format ctranslate2" in refusal(capsys, checkpoint, new, "--data", corpus)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    said = refusal(capsys, *wanted, "--data", corpus)
    assert "pip install 'fairseq-codistill[ctranslate2]'" in said
