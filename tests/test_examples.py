"""The scripts of examples/: the arithmetic, every line that they print, real runs."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.scoring import bleu
from harness import BIN, PLUGIN, SEED_STEP, Run, environment, equal
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from printed import EXAMPLES, example, launched, printed, understood

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task
from fairseq_codistill import cli
from fairseq_codistill.plain import allowing

sys.path.insert(0, str(EXAMPLES))

import average_checkpoints  # noqa: E402
import evaluate_scores  # noqa: E402

# Every script and every option that changes a command.
LINES = [
    "wmt16_big.sh --gpus 16",
    "wmt16_big.sh --gpus 16 --all-reduce",
    "wmt16_big.sh --groups 4 --precision bf16 --seed 7 --data D --out O -- --label-smoothing 0.1",
    "wmt16_big.sh --full-batch",
    "iwslt14_big.sh",
    "iwslt14_big.sh --all-reduce -- --label-smoothing 0",
    "iwslt14_big.sh --precision amp",
    "sweep_interval.sh --gpus 8",
    "sweep_interval.sh --recipe iwslt14_big --seed 2 -- --max-update 5",
    "sweep_alpha.sh --gpus 8",
    "sweep_alpha.sh --recipe iwslt14_big --points '1:0.5 1.5:1e-3' --out O",
    "evaluate.sh runs/wmt16_big/codistillation-seed1",
    "evaluate.sh --pair de-en --beam 5 --lenpen 1 --best --groups 1 runs/x -- --fp16",
    "evaluate.sh --subset valid --average 3 --references R --out O --sentencepiece --cpu runs/x",
]
# A model of a size for tests, on few updates; of the checkpoints three are kept.
TINY = """
    --arch transformer --encoder-layers 1 --decoder-layers 1
    --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32
    --encoder-attention-heads 2 --decoder-attention-heads 2
    --lr 0.01 --warmup-updates 2 --max-tokens 300 --max-update 8
    --save-interval-updates 2 --keep-interval-updates 3 --num-workers 0 --data-buffer-size 0
""".split()


def training(line: str, tmp_path: Path, monkeypatch, capsys) -> list[Namespace]:
    """What fairseq understands of each group that a training script would start."""
    command = next(words for words in printed(line, tmp_path) if words[0] == "codistill")
    return launched(command, monkeypatch, capsys)


# --- the arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [2, 8, 16, 128])
@pytest.mark.parametrize(
    ("options", "groups", "share"),
    [("", 2, 2), ("--all-reduce", 1, 1), ("--full-batch", 2, 1), ("--groups 2", 2, 2)],
)
def test_any_number_of_gpus_makes_the_recipes_batch(
    gpus, options, groups, share, tmp_path, monkeypatch, capsys
):
    each = training(f"wmt16_big.sh --gpus {gpus} {options}", tmp_path, monkeypatch, capsys)
    assert len(each) == groups
    for group, args in enumerate(each):
        assert args.distributed_world_size * groups == gpus
        tokens = args.distributed_world_size * args.update_freq[0] * args.max_tokens
        assert tokens * share == 128 * 3584
        assert args.max_tokens == 3584
        assert (args.lr, args.warmup_updates, args.max_update) == ([0.001], 4000, 18000)
        assert (args.codistill_num_groups, args.codistill_group) == (groups, group)
        assert args.label_smoothing == (0.1 if options == "--all-reduce" else 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("wmt16_big.sh --gpus 1", "does not divide into 2 groups; give one of 2 4 8 16 32 64 128"),
        ("wmt16_big.sh --gpus 9", "--gpus 9 does not divide into 2 groups"),
        ("wmt16_big.sh --gpus 12", "--gpus 12 does not divide 128 workers"),
        ("wmt16_big.sh --gpus 256", "--gpus 256 does not divide 128 workers"),
        ("wmt16_big.sh --gpus 6 --all-reduce", "give one of 1 2 4 8 16 32 64 128"),
        ("wmt16_big.sh --gpus 6 --groups 3", "--groups 3 cannot share the recipe's 128 workers"),
        ("wmt16_big.sh --gpus 4 --groups 8", "--gpus 4 does not divide into 8 groups"),
        ("wmt16_big.sh --gpus 0", "--gpus 0 is no number; give a whole one from 1 on"),
        ("wmt16_big.sh --gpus", "--gpus needs a value"),
        ("wmt16_big.sh --groups 1", "give 2 or more, or --all-reduce"),
        ("wmt16_big.sh --groups 2 --all-reduce", "exclude each other"),
        ("wmt16_big.sh --precision int8", "--precision int8 is unknown; give fp16, bf16, amp or"),
        ("wmt16_big.sh --lr 1", "unknown argument '--lr'; --help says what there is, flags of"),
        ("iwslt14_big.sh --gpus 8", "--gpus 8 does not divide 2 workers"),
        ("sweep_interval.sh --intervals '5 x'", "--intervals x is no number"),
        ("sweep_interval.sh --recipe bert", "--recipe bert is unknown; give wmt16_big or"),
        ("sweep_interval.sh --gpus 9", "--gpus 9 does not divide into 2 groups"),
        ("sweep_alpha.sh --groups abc --data X --dry-run", "--groups abc"),
        ("sweep_alpha.sh --points 1.1", "--points 1.1 is no GAMMA:ALPHA; write it as in 1.1:0.1"),
        ("evaluate.sh", "give a run"),
        ("evaluate.sh nowhere", "nowhere has no folder group-0"),
        ("evaluate.sh --pair german nowhere", "--pair german is no pair of languages"),
        ("evaluate.sh a b", "give one run, not 'a' and 'b'"),
        ("evaluate.sh --average 0 a", "--average 0 is no number"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(line, says, tmp_path):
    assert says in example(line, tmp_path, status=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("wmt16_big.sh", "wmt16_big/codistillation-seed1"),
        ("wmt16_big.sh --groups 2 --gpus 16", "wmt16_big/codistillation-seed1"),
        ("wmt16_big.sh --full-batch", "wmt16_big/codistillation-full-batch-seed1"),
        ("wmt16_big.sh --groups 4", "wmt16_big/codistillation-4-models-seed1"),
        ("iwslt14_big.sh --full-batch --seed 3", "iwslt14_big/codistillation-full-batch-seed3"),
        ("iwslt14_big.sh --all-reduce", "iwslt14_big/all_reduce-seed1"),
        # One model has the recipe's batch anyway.
        ("iwslt14_big.sh --all-reduce --full-batch", "iwslt14_big/all_reduce-seed1"),
        ("sweep_interval.sh", "sweep_interval/wmt16_big/interval-6250-seed1"),
        (
            "sweep_interval.sh --full-batch",
            "sweep_interval/wmt16_big-full-batch/interval-6250-seed1",
        ),
        (
            "sweep_alpha.sh --groups 4 --full-batch",
            "sweep_alpha/wmt16_big-4-models-full-batch/gamma-1-alpha-0.1-seed1",
        ),
        ("wmt16_big.sh --full-batch --out O", "O"),
    ],
)
def test_the_default_directory_tells_runs_with_other_batches_apart(line, out, tmp_path):
    command = next(words for words in printed(line, tmp_path) if words[0] == "codistill")
    assert command[command.index("--out") + 1] == (out if out == "O" else f"runs/{out}")


@pytest.mark.parametrize("script", ["wmt16_big.sh", "iwslt14_big.sh"])
def test_the_help_says_what_a_full_batch_changes(script, tmp_path):
    told = " ".join(example(f"{script} --help", tmp_path).split())
    assert re.search(r"--full-batch [^-]*twice the epochs .* another alpha", told)


# --- every line that is printed is understood -----------------------------------------------------


@pytest.mark.parametrize("line", LINES)
def test_every_printed_command_is_understood(line, tmp_path, monkeypatch, capsys):
    commands = printed(line, tmp_path)
    kinds = {understood(command, tmp_path, monkeypatch, capsys) for command in commands}
    for command in commands:
        if command[:2] == ["codistill", "launch"]:
            each = launched(command, monkeypatch, capsys)
            assert all(args.required_batch_size_multiple == 8 for args in each)
    wanted = {"evaluate.sh": {"fairseq-generate", "evaluate_scores.py"}}
    assert kinds >= wanted.get(line.split()[0], {"codistill", "evaluate.sh"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.sh")))
def test_help_is_the_comment_at_the_top(script, tmp_path):
    if script in ("recipe.sh", "vision_recipe.sh"):
        pytest.skip("is sourced")
    assert f"Usage: {script}" in example(f"{script} --help", tmp_path)


def test_every_option_stands_in_the_help(tmp_path):
    for script in ("wmt16_big.sh", "iwslt14_big.sh"):
        text = example(f"{script} --help", tmp_path)
        source = (EXAMPLES / "recipe.sh").read_text()
        body = source[source.index("recipe_options() {") : source.index("work_out() {")]
        for option in set(re.findall(r"(--[a-z-]+)(?: \||\))", body)) - {"--help"}:
            assert f"\n  {option} " in text, option


@pytest.mark.parametrize("recipe", ["wmt16_big", "iwslt14_big"])
def test_the_twins_differ_in_their_regularisation_and_their_workers_only(
    recipe, tmp_path, monkeypatch, capsys
):
    one, *_ = training(f"{recipe}.sh", tmp_path, monkeypatch, capsys)
    all_reduce, *others = training(f"{recipe}.sh --all-reduce", tmp_path, monkeypatch, capsys)
    assert not others
    different = {key for key in vars(one) if vars(one)[key] != vars(all_reduce).get(key)}
    # What launch gives each run, and how it has a worker on CPU meet the others of its group.
    launch = {"save_dir", "codistill_dir", "codistill_run_id", "distributed_init_method"}
    meeting = {"ddp_backend", "distributed_backend", "distributed_no_spawn", "distributed_rank"}
    assert different - launch - meeting == {
        *["label_smoothing", "distributed_world_size", "codistill_num_groups"],
        *["codistill_interval", "codistill_alpha", "codistill_alpha_max"],
        "codistill_peer_dropout",
    } - ({"codistill_interval"} if recipe == "wmt16_big" else set())


def test_the_sweeps_are_those_of_the_figures(tmp_path, monkeypatch, capsys):
    def swept(line, *keys):
        commands = [c for c in printed(line, tmp_path) if c[:2] == ["codistill", "launch"]]
        first = [launched(command, monkeypatch, capsys)[0] for command in commands]
        return [tuple(getattr(args, key) for key in keys) for args in first]

    assert swept("sweep_interval.sh", "codistill_interval") == [(6250,), (2500,), (1000,)]
    iwslt = swept("sweep_interval.sh --recipe iwslt14_big", "codistill_interval")
    assert iwslt == [(2500,), (1000,), (400,)]
    points = swept("sweep_alpha.sh", "codistill_alpha_growth", "codistill_alpha")
    assert {gamma for gamma, _ in points} == {1, 1.1, 1.5}
    assert all(len([1 for g, _ in points if g == gamma]) >= 2 for gamma in (1, 1.1, 1.5))


# --- the hydra configurations ---------------------------------------------------------------------


def settings_of(cfg) -> dict[str, object]:
    """The settings of a fairseq configuration that matter in training, the model's apart."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return {
        f"{section}.{key}": value
        for section, values in plain.items()
        if isinstance(values, dict) and section not in ("model", "scoring")
        for key, value in values.items()
    }


def model_of(cfg) -> dict[str, object]:
    """A legacy model's settings, once its architecture has filled in what is not said."""
    model = cfg.model if isinstance(cfg.model, Namespace) else Namespace(**cfg.model)
    ARCH_CONFIG_REGISTRY[model._name](model)
    return vars(model)


# What fairseq itself does with hydra is deprecated in many ways.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("recipe", ["wmt16_big", "iwslt14_big"])
def test_hydra_has_the_same_settings(recipe, tmp_path, monkeypatch, capsys):
    command = next(words for words in printed(f"{recipe}.sh", tmp_path) if words[0] == "codistill")
    words = command[command.index("fairseq-train") + 1 :]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    shell = convert_namespace_to_omegaconf(args)

    GlobalHydra.instance().clear()
    hydra_init(recipe)
    overrides = [f"common.user_dir={args.user_dir}", f"task.data={args.data}"]
    with initialize_config_dir(str(EXAMPLES / "config"), version_base="1.1"):
        config = compose(recipe, overrides=overrides)
    add_defaults(config)

    assert settings_of(config) == settings_of(shell)
    said = model_of(config)
    assert {key: model_of(shell)[key] for key in said} == said


@pytest.mark.parametrize("recipe", ["wmt16_big", "iwslt14_big"])
def test_launch_understands_the_hydra_line(recipe, monkeypatch, capsys):
    head = (EXAMPLES / "config" / f"{recipe}.yaml").read_text().split("\n\n")[0]
    line = re.search(r"codistill launch(.|\\\n)*?(?<!\\)\n", head.replace("#", " "))[0]
    line = line.replace('"$(codistill user-dir)"', str(PLUGIN)).replace("\\\n", " ")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(EXAMPLES.parent)
    assert cli.main(["launch", "--print", *shlex.split(line)[2:]]) == 0
    shown = capsys.readouterr().out
    # The seed is read from the YAML.
    assert "++common.seed=1 " in shown
    assert f"++common.seed={1 + SEED_STEP} " in shown


# --- evaluation -----------------------------------------------------------------------------------


def checkpoint(path: Path, value: float, **other: torch.Tensor) -> Path:
    model = {
        "weight": torch.full((2, 3), value),
        "half": torch.full((2,), value, dtype=torch.float16),
        "count": torch.tensor(int(value)),
        **other,
    }
    state = {"args": Namespace(lr=value), "model": model, "last_optimizer_state": {"m": model}}
    torch.save(state, path)
    return path


def test_the_average_is_the_mean_of_the_newest(tmp_path):
    for update, value in [(30, 3.0), (4, 100.0), (200, 7.0), (100, 5.0)]:
        checkpoint(tmp_path / f"checkpoint_{update // 10 + 1}_{update}.pt", value)
    checkpoint(tmp_path / "checkpoint_last.pt", 1000)
    new = tmp_path / "new" / "average.pt"
    average_checkpoints.main(["--last", "3", "--output", str(new), str(tmp_path)])
    with allowing([Namespace]):
        state = torch.load(new, weights_only=True)
    assert torch.equal(state["model"]["weight"], torch.full((2, 3), 5.0))
    assert torch.equal(state["model"]["half"], torch.full((2,), 5.0))
    assert state["model"]["half"].dtype == torch.float32
    assert state["model"]["count"] == 7
    assert state["args"].lr == 7
    assert state["last_optimizer_state"] is None
    assert [path.name for path in new.parent.iterdir()] == ["average.pt"]


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch /tmp/harmful",))


def test_what_cannot_be_averaged_is_refused_in_a_sentence(tmp_path):
    good = checkpoint(tmp_path / "checkpoint_1_1.pt", 1)
    other = checkpoint(tmp_path / "other.pt", 1, more=torch.ones(1))
    torn = tmp_path / "torn.pt"
    torn.write_bytes(good.read_bytes()[:-200])
    pickled = tmp_path / "pickled.pt"
    torch.save({"model": Harmful()}, pickled)
    empty = tmp_path / "empty.pt"
    torch.save({}, empty)
    for paths, says in [
        ([other, good], "other weights"),
        ([good, torn], "torn or no checkpoint"),
        ([good, pickled], "torn or no checkpoint"),
        ([good, empty], "holds no model"),
    ]:
        with pytest.raises(ValueError, match=says):
            average_checkpoints.average(paths)
    with pytest.raises(ValueError, match="--last 2 asks for more than the 1 checkpoint_EPOCH"):
        average_checkpoints.last(tmp_path, 2)


def test_tokenised_bleu_is_what_fairseq_score_says_of_split_compounds():
    words = ["ein", "Hut-Ab-Satz", "ab-", "-", "a-b-c", "-x", "ja", "nein", "Gut", "."]
    rng = random.Random(3)
    references = [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(40)]
    hypotheses = []
    for line in references:
        kept = [word for word in line.split() if rng.random() < 0.9]
        hypotheses.append(" ".join(kept) or "ja")

    assert evaluate_scores.split_compounds("a-b-c -x y- z") == ("a ##AT##-##AT## b-c -x y- z"), (
        "as Perl does it: matches do not overlap"
    )
    symbols = Dictionary()
    scorer = bleu.Scorer(bleu.BleuConfig(pad=symbols.pad(), eos=symbols.eos(), unk=symbols.unk()))
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        scorer.add(
            *(
                symbols.encode_line(evaluate_scores.split_compounds(line), line_tokenizer=str.split)
                for line in (reference, hypothesis)
            )
        )
    ours = evaluate_scores.tokenised_bleu(hypotheses, references)
    assert ours == pytest.approx(scorer.score(), abs=1e-4)
    assert 5 < ours < 95


def test_scores_are_of_detokenised_text():
    output = "".join(
        f"T-{i}\t{reference}\nH-{i}\t-0.5\t{hypothesis}\n"
        for i, (reference, hypothesis) in enumerate(
            [("Das ist gut , ja !", "Das ist gut , ja !"), ("Er &apos;s da .", "Er &apos;s da .")]
        )
    )
    detokenise = evaluate_scores.detokeniser("de")
    assert detokenise("Das ist gut , ja !") == "Das ist gut, ja!"
    scores, sentences = evaluate_scores.score(output, detokenise, None)
    assert (scores["sacrebleu"], sentences) == (pytest.approx(100), 2)
    raw = ["Das ist gut, ja!", "Er 's da."]
    assert evaluate_scores.score(output, detokenise, raw)[0]["sacrebleu"] > 80
    untokenised, _ = evaluate_scores.score(output, None, None)
    assert untokenised["compound_split_bleu"] is None
    with pytest.raises(ValueError, match="--references has 1 lines for 2 translations"):
        evaluate_scores.score(output, detokenise, raw[:1])
    with pytest.raises(ValueError, match="0 translations"):
        evaluate_scores.score("", detokenise, None)


# --- real runs ------------------------------------------------------------------------------------


def run(line: str, tmp_path: Path, corpus: Path, out: Path, *flags: str) -> list[Run]:
    """Run a training script on CPU with a tiny model; gives what each group left behind."""
    said = f"{line} --cpu --gpus 2 --data {corpus} --out {out} -- {shlex.join([*TINY, *flags])}"
    example(said, tmp_path)
    folders = sorted(out.glob("group-*"))
    return [Run(folder, (folder / "log.txt").read_text()) for folder in folders]


def test_a_recipe_runs_and_is_evaluated(corpus, tmp_path):
    out = tmp_path / "run"
    # So short a run may be over before an async group sees its peer.
    interval = ["--codistill-interval", "2", "--codistill-mode", "lockstep"]
    groups = run("iwslt14_big.sh --seed 5", tmp_path, corpus, out, *interval)
    assert len(groups) == 2
    for group in groups:
        assert group.lines("train")[-1]["num_updates"] == 8
    averaging = "evaluate.sh --cpu --pair de-en --beam 2 --lenpen 1 --subset valid --average 3"
    table = example(f"{averaging} --data {corpus} {out}", tmp_path)
    result = json.loads((out / "evaluation" / "scores.json").read_text())
    assert list(result["scores"]) == ["model 0", "model 1", "ensemble", "weight average"]
    assert result["sentences"] == 60
    assert result["sacrebleu_signature"] in table
    for name, scores in result["scores"].items():
        folder = out / "evaluation" / name.replace(" ", "-")
        # There are no hyphens in this corpus, so fairseq's own figure is ours.
        told = re.search(r"BLEU4 = ([\d.]+)", (folder / "generate-valid.txt").read_text())
        assert scores["compound_split_bleu"] == pytest.approx(float(told[1]), abs=0.01)
        assert f"{scores['sacrebleu']:.2f}" in table
    kept = [groups[0].weights(f"checkpoint_{name}.pt") for name in ("1_4", "1_6", "1_8")]
    mean = Run(out / "evaluation", "").weights("model-0.pt")
    name = "encoder.layers.0.fc1.weight"
    assert torch.allclose(mean[name], sum(model[name] for model in kept) / 3)


@pytest.mark.full
@pytest.mark.parametrize(
    "line",
    [
        "wmt16_big.sh",
        "wmt16_big.sh --full-batch",
        "wmt16_big.sh --all-reduce",
        "iwslt14_big.sh --all-reduce",
    ],
)
def test_every_recipe_runs(line, corpus, tmp_path):
    groups = run(line, tmp_path, corpus, tmp_path / "run", "--update-freq", "1")
    assert len(groups) == (1 if "--all-reduce" in line else 2)
    for group in groups:
        assert group.lines("train")[-1]["num_updates"] == 8
    pair = "en-de" if line.startswith("wmt16") else "de-en"
    said = f"evaluate.sh --cpu --pair {pair} --best --data {corpus} {tmp_path / 'run'}"
    example(said, tmp_path)
    result = json.loads((tmp_path / "run/evaluation/scores.json").read_text())
    assert result["sentences"] == 200
    assert len(result["scores"]) == (1 if "--all-reduce" in line else 4)


@pytest.mark.full
@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("sweep_interval.sh --intervals '2 4'", ["interval-2-seed1", "interval-4-seed1"]),
        (
            "sweep_alpha.sh --recipe iwslt14_big --points '1:0.5 1.5:0.1'",
            ["gamma-1-alpha-0.5-seed1", "gamma-1.5-alpha-0.1-seed1"],
        ),
    ],
)
def test_every_sweep_runs_and_passes_over_what_is_finished(line, names, corpus, tmp_path):
    out = tmp_path / "sweep"
    run(line, tmp_path, corpus, out, "--update-freq", "1")
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    ends = [out / name / f"group-{i}" / "checkpoint_last.pt" for name in names for i in (0, 1)]
    before = [path.stat().st_mtime_ns for path in ends]
    run(line, tmp_path, corpus, out, "--update-freq", "1")
    assert [path.stat().st_mtime_ns for path in ends] == before


@pytest.mark.full
def test_hydra_trains_the_same_model_as_the_script(corpus, tmp_path):
    (script,) = run("iwslt14_big.sh --all-reduce", tmp_path, corpus, tmp_path / "script")
    model = [f"++model.{side}_layers=1" for side in ("encoder", "decoder")]
    for side in ("encoder", "decoder"):
        model += [f"++model.{side}_embed_dim=16", f"++model.{side}_ffn_embed_dim=32"]
        model += [f"++model.{side}_attention_heads=2"]
    overrides = [
        *["lr_scheduler.warmup_updates=2", "optimization.lr=[0.01]", "optimization.max_update=8"],
        *["checkpoint.save_interval_updates=2", "checkpoint.keep_interval_updates=3"],
        *["dataset.max_tokens=300", "dataset.num_workers=0", "dataset.data_buffer_size=0"],
        *["common.cpu=true", "criterion.label_smoothing=0.1", "model._name=transformer"],
    ]
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "1", "--workers-per-group", "2"],
        *["--out", str(tmp_path / "hydra"), "--", "fairseq-hydra-train"],
        *["--config-dir", str(EXAMPLES / "config"), "--config-name", "iwslt14_big"],
        *[f"common.user_dir={PLUGIN}", f"task.data={corpus}", *model, *overrides],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    hydra = Run(tmp_path / "hydra" / "group-0", "")
    assert equal(script.weights(), hydra.weights())


@pytest.mark.full
def test_all_reduce_trains_fairseqs_own_model(corpus, tmp_path):
    """A single group is `translation` with `label_smoothed_cross_entropy`, bit for bit."""
    out = tmp_path / "script"
    line = f"iwslt14_big.sh --all-reduce --cpu --gpus 1 --data {corpus} --out {out} -- "
    line += shlex.join(TINY)
    (command, _) = printed(line, tmp_path)
    example(line, tmp_path)
    words = command[command.index("fairseq-train") + 1 :]
    ours = {"codistill_translation": "translation"}
    ours["codistill_cross_entropy"] = "label_smoothed_cross_entropy"
    own = [ours.get(word, word) for word in words]
    start = own.index("--user-dir")
    subprocess.run(
        [str(BIN / "fairseq-train"), *own[:start], *own[start + 2 :]]
        + ["--save-dir", str(tmp_path / "plain")],
        env=environment(),
        capture_output=True,
        check=True,
        timeout=300,
    )
    assert equal(Run(out / "group-0", "").weights(), Run(tmp_path / "plain", "").weights())
