"""Other people's models: what they do with their logits, flags that they want, and as peers."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import own_models
import pytest
import torch
from harness import LOCKSTEP, environment, eventually, launch
from own_models import FACTOR
from test_adapter import Student, groups  # noqa: F401 - a fixture
from test_teachers import fairseqs, saved
from torch import nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.criterions import _hidden
from fairseq_codistill.criterions._rows import TOKENS_A_SENTENCE, rows_by_settings
from fairseq_codistill.tasks import _models, _teachers
from fairseq_codistill.tasks.codistill_translation import CodistillTranslationTask

# What the logits are not the output layer's alone in, and what has them so, however it looks.
CHANGED = ["scaled", "shifted", "written", "behind", "twopass", "normed", "copying"]
PLAIN = ["halved", "verbose", "marked"]
NOT_ALONE = "are not its output layer's alone: it changes them, or calls the layer more than once"


def own(name, *flags):
    return ["--arch", f"{name}_small", "--dropout", "0", *flags]


def formula(student, peers=(), temperature=1.0):
    """The cross-entropy and the divergence of a batch, from whole logits in float64."""
    target = student.sample["target"][student.sample["target"] != student.pad]
    logits = student.logits()
    nll = F.cross_entropy(logits / temperature, target, reduction="sum").item()
    others = [(peer.logits() - logits).square().mean(dim=1).sum().item() for peer in peers]
    return nll, sum(others) / max(len(others), 1)


def trained_on(student):
    """What the criterion gives for the student's batch, in training."""
    # A model may have been made one of float64, for the formula.
    student.model.float().train()
    loss, _, log = student.criterion(student.model, student.sample)
    loss.backward()
    return loss.item(), log["nll_loss"].item(), log["codistill_loss"].item()


def agrees(student, peers, temperature=1.0):
    loss, nll, divergence = trained_on(student)
    for number, true in zip((nll, divergence), formula(student, peers, temperature), strict=True):
        assert number == pytest.approx(true, rel=1e-4)
    assert loss == pytest.approx(nll + 0.7 * divergence, rel=1e-5)
    assert divergence > 1e-4 * nll


ALPHA = ["--codistill-alpha", "0.7"]


@pytest.mark.parametrize("name", [*CHANGED, *PLAIN, "tempered", "wide"])
def test_the_loss_is_that_of_whole_logits(groups, caplog, name):  # noqa: F811
    caplog.set_level(logging.INFO)
    student, peers = groups(*own(name), *ALPHA, peer_flags=own(name))
    agrees(student, peers, FACTOR if name == "tempered" else 1.0)
    agrees(student, peers, FACTOR if name == "tempered" else 1.0)
    # Where the factored form would be cheaper.
    assert caplog.text.count("computed in the factored form") == (name != "wide")
    assert caplog.text.count(NOT_ALONE) == (name in CHANGED)
    assert caplog.text.count("computed in the naive form") == (name in [*CHANGED, "wide"])


# In training alone is the other one different.
@pytest.mark.parametrize("name", [name for name in CHANGED if name != "twopass"])
def test_a_peer_that_changes_its_logits_is_compared_by_them(groups, caplog, name):  # noqa: F811
    caplog.set_level(logging.INFO)
    trust = ["--codistill-trust-arch", f"{name}_small", "--codistill-head", "factored"]
    student, peers = groups(*trust, *ALPHA, peer_flags=own(name))
    agrees(student, peers)
    agrees(student, peers)
    assert caplog.text.count("the logits of a peer or teacher") == 1


@pytest.mark.parametrize("name", [*PLAIN, "transformer"])
@pytest.mark.parametrize("flag", ["--codistill-head factored", "--codistill-fused-ce"])
def test_a_model_that_only_looks_odd_makes_no_logits_more(
    groups,  # noqa: F811
    monkeypatch,
    name,
    flag,
):
    arch = own(name) if name in PLAIN else ["--dropout", "0"]
    student, peers = groups(*arch, *ALPHA, *flag.split(), peer_flags=arch)
    (live,) = student.task.codistillation.peers
    made = []

    def linear(*args, _linear=F.linear):
        made.append(args[1])
        return _linear(*args)

    # Of a new snapshot a few rows are looked at.
    student.task.codistillation._acceptance._new.clear()
    monkeypatch.setattr(F, "linear", linear)
    trained_on(student)
    heads = [model.decoder.output_projection.weight for model in (live.module, student.model)]
    products = [sum(weight is head for weight in made) for head in heads]
    # The student's for the cross-entropy, and once to compare a row with what its layer makes.
    assert products == [0, 1 if "fused" in flag else 2]
    monkeypatch.undo()
    agrees(student, peers)


@pytest.mark.parametrize("flag", ["--codistill-head factored", "--codistill-head chunked"])
@pytest.mark.parametrize("name", [*CHANGED, "wide"])
def test_a_form_that_is_asked_for_in_vain_is_refused(
    groups,  # noqa: F811
    capsys,
    name,
    flag,
):
    if name in ("written", "shifted", "normed") and "chunked" in flag:
        pytest.skip("as the others")
    with pytest.raises(SystemExit) as end:
        trained_on(groups(*own(name), *flag.split(), live=False)[0])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith(f"codistill: error: {flag}: the ")
    assert ("has no plain output layer" if name == "wide" else NOT_ALONE) in line


@pytest.mark.parametrize("name", [*CHANGED, "wide", "tempered"])
def test_the_fused_cross_entropy_is_refused(corpus, capsys, name):
    with pytest.raises(SystemExit) as end:
        trained_on(Student(corpus, *own(name), "--codistill-fused-ce"))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("codistill: error: --codistill-fused-ce: the ")
    early = name in ("wide", "tempered")
    assert ("no plain output layer" if early else NOT_ALONE) in line


def test_logits_that_are_not_where_they_should_be_are_a_sentence(groups, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        trained_on(groups(*own("dictionary"), live=False)[0])
    said = capsys.readouterr().err
    assert "the model (Dictionary) returns dict for (9, " in said
    assert "choose another --arch" in said


def test_what_a_model_does_with_one_batch_alone_is_seen_in_that_batch(
    groups,  # noqa: F811
    monkeypatch,
):
    usual = own_models.TransformerDecoder.output_layer

    def at_times(self, features):
        x = usual(self, features)
        return 3 * x if features.size(0) > 5 else x

    monkeypatch.setattr(own_models.Halved, "output_layer", at_times)
    student, peers = groups(*own("halved"), *ALPHA, peer_flags=own("halved"))
    dataset = student.task.dataset("valid")
    for sentences in (3, 9, 3, 9):
        student.sample = dataset.collater([dataset[i] for i in range(sentences)])
        for peer in peers:
            peer.sample = student.sample
        agrees(student, peers)


def test_looking_at_a_peer_draws_no_random_numbers(groups):  # noqa: F811
    arch = own("marked", "--decoder-layerdrop", "0.5", "--decoder-layers", "4")
    student, _ = groups(*arch, peer_flags=arch)
    (peer,) = student.task.codistillation.peers
    target, net_input = student.sample["target"], student.sample["net_input"]
    outputs, found = _hidden.PeerOutputs(), []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.no_grad():
            rows = outputs(peer.module, net_input, target, target != student.pad).rows
        found.append((rows, torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


# Which form, by settings.


@pytest.mark.parametrize(
    ("max_tokens", "sentences", "rows"),
    [
        (3584, None, 3584),
        (None, 8, 8 * TOKENS_A_SENTENCE),
        (3584, 8, 8 * TOKENS_A_SENTENCE),
        (100, 8, 100),
        (None, None, 0),
    ],
)
def test_rows_by_settings(max_tokens, sentences, rows):
    assert rows_by_settings(max_tokens, sentences) == rows


@pytest.mark.parametrize(
    ("flags", "form", "rows"),
    [
        ([], "factored", 300),
        (["--max-tokens", "60"], "naive", 60),
        (["--batch-size", "2"], "naive", 2 * TOKENS_A_SENTENCE),
        (["--max-tokens", "60", "--codistill-head", "chunked"], "chunked", 60),
    ],
)
@pytest.mark.parametrize("sentences", [1, 40])
def test_no_batch_decides_the_form(groups, caplog, flags, form, rows, sentences):  # noqa: F811
    caplog.set_level(logging.INFO)
    student, _ = groups(*flags, live=False)
    dataset = student.task.dataset("valid")
    student.sample = dataset.collater([dataset[i] for i in range(sentences)])
    trained_on(student)
    said = [m for m in caplog.messages if m.startswith("divergence: computed in ")]
    assert [m.split(",")[0] for m in said] == [
        f"divergence: computed in the {form} form (batches of {rows} rows by the settings"
    ]


# Flags, and architectures as peers.


def flagged(scale, *flags, side="--left"):
    given = ["--my-scale", str(scale), side, "3", "--my-code-path", "code.txt"]
    return own("flagged", *given, *flags)


@pytest.mark.parametrize("side", ["--left", "--right"])
def test_a_model_with_required_flags_is_a_peer(groups, side):  # noqa: F811
    student, peers = groups(
        *flagged(2, "--my-profile", "odd"),
        *ALPHA,
        peer_flags=flagged(3, "--my-profile", "odd", side=side),
    )
    agrees(student, peers)
    (peer,) = student.task.codistillation.peers
    assert (peer.module.scale, peer.module.left) == (3.0, 3 if side == "--left" else None)
    assert (peer.module.profile, peer.module.code) == ("odd", "code.txt")


def test_a_setting_of_the_function_of_an_architecture_is_the_peers(
    groups,  # noqa: F811
    monkeypatch,
):
    make = Student.publish

    def publish(self, *args, **kwargs):
        self.cfg.model.my_set = 8
        make(self, *args, **kwargs)

    monkeypatch.setattr(Student, "publish", publish)
    student, _ = groups(*flagged(2), peer_flags=flagged(2))
    (peer,) = student.task.codistillation.peers
    assert (student.model.set, peer.module.set) == (7, 8)


def test_a_file_of_a_peer_is_neither_told_nor_taken_for_ones_own(groups, caplog):  # noqa: F811
    theirs = flagged(2, "--my-profile", "dir/secret.txt")
    student, (peer,) = groups(*flagged(2), peer_flags=theirs, live=False)
    assert "secret" not in str(_models.describe(peer.cfg.model))
    assert "code.txt" not in str(_models.describe(peer.cfg.model))
    refused_for(
        student, caplog, "its setting my_profile is told by its digest alone, and this group has"
    )


def refused_for(student, caplog, reason):
    def refused():
        student.task.codistillation.at_boundary(50, epoch=1)
        return reason in caplog.text

    eventually(refused, f"the peer was not refused because {reason}")
    assert student.task.codistillation.peers == []


def test_a_model_whose_settings_are_declared_is_a_peer(groups):  # noqa: F811
    arch = ["--arch", "declared", "--my-scale"]
    student, peers = groups(*arch, "2", *ALPHA, peer_flags=[*arch, "3"])
    agrees(student, peers)


def test_an_architecture_of_ones_own_is_a_peer_if_it_is_trusted(groups, caplog):  # noqa: F811
    student, _ = groups(peer_flags=own("scaled"), live=False)
    refused_for(student, caplog, "if you trust it, give --codistill-trust-arch scaled_small")


@pytest.mark.parametrize("names", ["scaled_small", "scaled", "lstm:scaled"])
def test_a_trusted_architecture_is_a_peer(groups, names):  # noqa: F811
    trust = ["--codistill-trust-arch", names]
    student, peers = groups(*trust, *ALPHA, "--dropout", "0", peer_flags=own("scaled"))
    agrees(student, peers)


def test_only_architectures_that_there_are_can_be_trusted(groups, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as end:
        groups("--codistill-trust-arch", "scaled:scalde", live=False)
    assert end.value.code == 2
    assert "--codistill-trust-arch scalde: there is no such" in capsys.readouterr().err


def test_real_groups_of_a_model_with_required_flags(corpus, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(Path(own_models.__file__), mine / "__init__.py")
    flags = ["--user-dir", str(mine), "--max-update", "8", *LOCKSTEP, "--codistill-interval", "4"]
    runs = launch(
        corpus,
        tmp_path / "out",
        *flags,
        model=flagged(1),
        options=["--group", "1: --my-scale 2"],
    )
    for run in runs:
        assert {line["codistill_peers"] for line in run.lines()} == {1}
        assert min(line["codistill_loss"] for line in run.lines()) > 0
        assert len(re.findall(NOT_ALONE, run.log)) == 1


# What cannot be trained.

NOT_AUTOREGRESSIVE = [
    *["nonautoregressive_transformer", "iterative_nonautoregressive_transformer"],
    *["cmlm_transformer", "insertion_transformer", "levenshtein_transformer", "nacrf_transformer"],
]
SMALL = """--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-attention-heads 2 --decoder-attention-heads 2""".split()


@pytest.mark.parametrize("arch", NOT_AUTOREGRESSIVE)
def test_a_nonautoregressive_model_is_refused(corpus, capsys, arch):
    with pytest.raises(SystemExit) as end:
        Student(corpus, "--arch", arch, *SMALL)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("codistill: error: --arch (")
    assert "missing a required argument: 'tgt_tokens'" in line
    assert line.endswith("choose another architecture")


def test_a_nonautoregressive_model_is_no_teacher_and_no_peer(
    corpus,
    tmp_path,
    groups,  # noqa: F811
):
    arch = ["--arch", "cmlm_transformer", *SMALL]
    path, model = saved(tmp_path / "teacher.pt", corpus, *arch)
    task, student, args, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match="forward pass cannot do with source and previous target"):
        _teachers.load(str(path), task, student)
    config = _models.describe(fairseqs(corpus, *arch)[2])
    like = next(student.parameters())
    with pytest.raises(ValueError, match="forward pass cannot do with source and previous target"):
        _models.build(task, args, config, like, model.state_dict(), ["cmlm_transformer"])


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--fp16", "--fp16 needs a GPU, and torch finds none; leave it out, or hand"),
        ("--bf16", "--bf16 and --memory-efficient-bf16 mean a TPU to fairseq-train, and torch_xla"),
        ("--memory-efficient-bf16", "--bf16 and --memory-efficient-bf16 mean a TPU"),
        ("--tpu", "mean a TPU"),
    ],
)
def test_half_precision_without_a_device_for_it_is_refused(corpus, capsys, monkeypatch, flag, says):
    monkeypatch.setattr(torch.cuda, "current_device", no_gpu)
    with pytest.raises(SystemExit) as end:
        Student(corpus, flag)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line


def no_gpu():
    raise RuntimeError("Found no NVIDIA driver on your system.")


@pytest.mark.parametrize(
    "flags", [["--memory-efficient-fp16"], ["--fp16", "--fp16-no-flatten-grads"], ["--amp"]]
)
def test_half_precision_that_needs_no_gpu_is_not_refused(corpus, monkeypatch, flags):
    monkeypatch.setattr(torch.cuda, "current_device", no_gpu)
    Student(corpus, *flags)


class Setting:
    """A setting that is an object, printed with its place in memory."""


@pytest.mark.parametrize("setting", [{"alpha", "beta", "gamma"}, Setting()])
def test_equal_settings_are_told_alike(setting):
    other = type(setting)(setting) if isinstance(setting, set) else Setting()
    told = [_models._told("my_own", value, needed=False) for value in (setting, other)]
    assert told[0] == told[1]
    text = "from fairseq_codistill.tasks import _models; print(_models._alike({'a', 'b', 'c'}))"
    said = {
        subprocess.run(
            [sys.executable, "-c", text],
            env=environment() | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in (1, 2)
    }
    assert len(said) == 1


def test_more_in_a_batch_is_for_a_task_of_ones_own():
    class Conditioned(nn.Module):
        def forward(self, src_tokens, src_lengths, prev_output_tokens, domain):
            pass

    class OwnTask(CodistillTranslationTask):
        pass

    ours = object.__new__(CodistillTranslationTask)
    assert "missing a required argument: 'domain'" in _models.why_no_logits(Conditioned(), ours)
    assert _models.why_no_logits(Conditioned(), object.__new__(OwnTask)) is None
