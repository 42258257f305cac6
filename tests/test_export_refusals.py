"""What export refuses: settings that fairseq would run, parts that are missing, full disks."""

import argparse
import contextlib
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from exported import (
    SMALL_FCONV,
    SMALL_ONE_LAYER,
    SMALL_SELF_ATTENTION,
    load,
    refusal,
    write_untrained,
)
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from harness import BIN, environment, eventually
from test_export import SMALL, SMALL_LSTM

from fairseq_codistill import cli
from fairseq_codistill.errors import UserError
from fairseq_codistill.export import guard, verify
from fairseq_codistill.export.checkpoint import Checkpoint, read
from fairseq_codistill.export.trained import trained_model


@pytest.fixture
def untrained(corpus, tmp_path):
    """Write the checkpoint of an untrained model, given its flags."""
    return lambda *flags: write_untrained(corpus, tmp_path, *flags)


def test_parts_that_are_missing_are_named(untrained, tmp_path, capsys):
    checkpoint = untrained("--arch", "transformer", *SMALL)
    whole, new = load(checkpoint), tmp_path / "new"
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
    assert "cannot be written" in refusal(capsys, checkpoint, tmp_path / "a\0b", *arguments)
    # Nobody, not even root, makes a file there.
    assert cli.main(["export", str(checkpoint), "/proc/new", *map(str, arguments)]) == 2
    assert "NEW /proc/new cannot be written" in capsys.readouterr().err
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "already there" in refusal(capsys, checkpoint, tmp_path / "dangling", *arguments)


@contextlib.contextmanager
def files_of_at_most(size):
    """Let no file grow beyond ``size`` bytes: what is written beyond fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("size", "arguments"),
    [(20_000, []), (20_000, ["--format", "ctranslate2"]), (75_000, ["--format", "ctranslate2"])],
    ids=["fairseq", "what CTranslate2 reads", "what CTranslate2 writes"],
)
def test_a_full_disk_is_told(untrained, corpus, tmp_path, capsys, size, arguments):
    checkpoint = untrained("--arch", "transformer", *SMALL)
    arguments = [*arguments, *(["--data", corpus] if arguments else [])]
    with files_of_at_most(size):
        said = refusal(capsys, checkpoint, tmp_path / "deep" / "new", *arguments)
    assert "new cannot be written: File too large; choose another place" in said
    assert not (tmp_path / "deep").exists()
    with pytest.raises(OSError, match="No space left"):
        verify.save({"w": torch.ones(10_000)}, Path("/dev/full"))


def test_what_another_process_has_written_meanwhile_stays(untrained, tmp_path, capsys, monkeypatch):
    checkpoint, new = untrained("--arch", "transformer", *SMALL), tmp_path / "new"

    def slow(trained, path):
        path.write_text("ours")
        new.write_text("theirs")

    monkeypatch.setattr(verify, "write_what_stock_fairseq_loads", slow)
    assert cli.main(["export", str(checkpoint), str(new)]) == 2
    assert "is already there" in capsys.readouterr().err
    assert new.read_text() == "theirs"


def settings_of(arch):
    """Names of the settings of an architecture: its flags, and what it fills in."""
    parser = argparse.ArgumentParser(add_help=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    filled = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](filled)
    return sorted(vars(parser.parse_args([])).keys() | vars(filled).keys())


ATTENTION = {"encoder_xformers_att_config", "decoder"}


@pytest.mark.parametrize(
    ("arch", "flags", "evaluated"),
    [
        ("transformer", SMALL, ATTENTION),
        ("transformer_align", SMALL, ATTENTION),
        ("bart_base", SMALL, ATTENTION),
        ("lstm", SMALL_LSTM, {"decoder_attention"}),
        ("lightconv", SMALL_ONE_LAYER, set()),
        ("fconv", SMALL_FCONV, {"encoder_layers", "decoder_layers", "decoder_attention"}),
        ("fconv_self_att", SMALL_SELF_ATTENTION, {"pretrained", "self_attention", "downsample"}),
    ],
)
def test_no_setting_of_a_checkpoint_is_run(
    untrained, tmp_path, monkeypatch, arch, flags, evaluated
):
    path = untrained("--arch", arch, *flags)
    whole, ran = read(path, own_only=True), tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"

    def build(name, value):
        # A part of a transformer may be given as a whole.
        value = {"xformers_att_config": value} if name in ("encoder", "decoder") else value
        model = argparse.Namespace(**{**vars(whole.cfg["model"]), name: value})
        with contextlib.suppress(UserError):
            trained_model(Checkpoint(path, whole.state, {**whole.cfg, "model": model}), None)

    for name in [*settings_of(arch), "encoder", "decoder"]:
        for value in (code, code.encode()):
            build(name, value)
            assert not ran.exists(), f"{name} = {value}"
    # The same without the guard: it is fairseq that runs some of them.
    monkeypatch.setattr(guard, "check", lambda *_: None)
    for name in evaluated:
        build(name, code)
        assert ran.exists(), name
        ran.unlink()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("print('run')", "xformers_att_config is print('run'), which fairseq would evaluate"),
        ("${oc.env:HOME}", "xformers_att_config is ${oc.env:HOME}, which fairseq would evaluate"),
        (b"print('run')", "xformers_att_config is of the type bytes"),
        ({"decoder_layers": "f()"}, "decoder_layers is f(), which fairseq would evaluate"),
        ({1: "2"}, "1 is of the type str"),
    ],
)
def test_what_fairseq_would_evaluate_is_told(untrained, tmp_path, capsys, value, expected):
    path = untrained("--arch", "transformer", *SMALL)
    state = load(path)
    vars(state["cfg"]["model"])["encoder"] = {"xformers_att_config": value}
    torch.save(state, path)
    said = refusal(capsys, path, tmp_path / "new")
    assert f"the checkpoint's setting {expected}; give a checkpoint " in said


def test_settings_that_are_sums_and_products_are_taken(untrained, capsys):
    layers = "[(16, 3)] + [(16,3)] * 1"
    path = untrained("--arch", "fconv", *SMALL_FCONV, "--encoder-layers", layers)
    built = trained_model(read(path, own_only=True), None)
    assert built.settings.encoder_layers == layers


def test_what_is_a_part_of_itself_is_refused(untrained, tmp_path, capsys):
    path = untrained("--arch", "lstm", *SMALL_LSTM)
    state, endless = load(path), []
    endless.append(endless)
    vars(state["cfg"]["model"])["endless"] = endless
    torch.save(state, path)
    assert "is nested too deeply" in refusal(capsys, path, tmp_path / "new")


def test_a_model_that_export_does_not_know_is_not_built(untrained, tmp_path, capsys):
    path = untrained("--arch", "transformer", *SMALL)
    state = load(path)
    vars(state["cfg"]["model"]).update(arch="wav2vec", _name="wav2vec", w2v_path="/etc/passwd")
    torch.save(state, path)
    said = refusal(capsys, path, tmp_path / "new")
    assert "wav2vec is not one that codistill export knows how to build safely (bart" in said


def test_a_users_code_is_not_imported_unless_it_is_named(untrained, tmp_path, capsys):
    """Neither the directory that the checkpoint names, nor one that it is given for another."""
    path, ran = untrained("--arch", "transformer", *SMALL), tmp_path / "ran"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
    state = load(path)
    state["cfg"]["common"]["user_dir"] = str(tmp_path / "evil")
    vars(state["cfg"]["model"]).update(arch="own", _name="own", user_dir=str(tmp_path / "evil"))
    torch.save(state, path)
    assert "own is not fairseq's own; give --user-dir" in refusal(capsys, path, tmp_path / "new")
    assert not ran.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_ended_leaves_nothing(untrained, tmp_path, number):
    checkpoint = untrained("--arch", "transformer", *SMALL)
    process = subprocess.Popen(
        [str(BIN / "codistill"), "export", str(checkpoint), str(tmp_path / "new.pt")],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def begun():
        assert process.poll() is None
        return list(tmp_path.glob(".codistill-export-*"))

    eventually(begun, "it has not begun to write")
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert [path.name for path in tmp_path.iterdir() if path != checkpoint] == []


def test_languages_that_are_not_those_of_training_are_refused(untrained, corpus, tmp_path, capsys):
    checkpoint = untrained("--arch", "transformer", *SMALL, "-s", "de", "-t", "en")
    arguments = ["--format", "ctranslate2", "--data", str(corpus), "-s", "en", "-t", "de"]
    said = refusal(capsys, checkpoint, tmp_path / "new", *arguments)
    assert "-s en: the model was trained with de; leave it out" in said
