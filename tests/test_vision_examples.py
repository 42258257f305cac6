"""Recipes and scripts of the image figures: the arithmetic, every line that they print, runs."""

import re
import shlex
from pathlib import Path

import pytest
from harness import SEED_STEP
from omegaconf import OmegaConf
from printed import EXAMPLES, example, launched, printed, understood
from vision_harness import MODEL, write_images

RECIPES = EXAMPLES / "config/vision"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("imagenet_*.sh"))
# A model and images of a size for tests, on few updates.
TINY = [
    *[*MODEL, "--image-size", "12", "--augmentation", "cifar", "--no-channels-last"],
    *["--batch-size", "4", "--update-freq", "1", "--num-workers", "0", "--max-update", "5"],
    *["--lr", "0.001", "--codistill-interval", "2", "--log-interval", "1"],
    # So short a run may be over before an async group sees its peer.
    *["--codistill-mode", "lockstep"],
]


def recipe(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(RECIPES / f"{name}.yaml"))


def different(one: str, other: str) -> set[str]:
    a, b = recipe(one), recipe(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def groups_of(line: str, tmp_path: Path, monkeypatch, capsys) -> dict[str, list]:
    """The settings of each group of each run that a script would launch, by the run's name."""
    commands = [c for c in printed(line, tmp_path) if c[:2] == ["codistill", "launch"]]
    names = [Path(command[command.index("--out") + 1]).name for command in commands]
    return {
        name: launched(command, monkeypatch, capsys)
        for name, command in zip(names, commands, strict=True)
    }


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["imagenet", "cifar10"])
def test_recipes_differ_in_what_they_should(scale):
    milestones = {"lr_milestones", "codistill_alpha_milestones"}
    decay = {"weight_decay_schedule"}
    assert different(f"{scale}/halved", f"{scale}/shifted") == milestones
    assert different(f"{scale}/shifted", f"{scale}/decayed") == decay
    halved = different(f"{scale}/all_reduce", f"{scale}/halved")
    halved = {key for key in halved if not key.startswith("codistill_")}
    assert halved == {"epochs", "warmup_epochs", "lr_milestones", "validate_interval"}
    twin, half = recipe(f"{scale}/all_reduce"), recipe(f"{scale}/halved")
    for key in ("epochs", "warmup_epochs", "validate_interval"):
        assert twin[key] == 2 * half[key], key
    assert twin["lr_milestones"] == [2 * epoch for epoch in half["lr_milestones"]]
    cosine = different(f"{scale}/all_reduce", f"{scale}/cosine_all_reduce")
    assert cosine == {"lr_schedule", "lr_milestones"}
    assert recipe(f"{scale}/cosine")["lr_schedule"] == "cosine"


def test_recipes_of_imagenet_are_the_papers():
    shifted, goyal = recipe("imagenet/decayed"), recipe("imagenet/all_reduce")
    assert (goyal["epochs"], goyal["lr_milestones"]) == (90, [30, 60, 80])
    assert (goyal["lr"], goyal["lr_batch"], goyal["warmup_epochs"]) == (0.1, 256, 5)
    assert float(goyal["weight_decay"]) == 1e-4
    assert (shifted["epochs"], shifted["lr_milestones"]) == (45, [18, 38, 44])
    assert [float(decay) for decay in shifted["weight_decay_schedule"]] == [1e-5, 0]
    assert (shifted["codistill_interval"], shifted["codistill_alpha_step"]) == (2500, 0.5)


# --- scripts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_printed_command_is_understood(script, tmp_path, monkeypatch, capsys):
    commands = printed(script, tmp_path)
    kinds = [tuple(command[:2]) for command in commands]
    assert kinds[-1] == ("codistill", "report")
    assert kinds.count(("codistill", "launch")) == len(kinds) - 1 >= 2
    for command in commands:
        understood(command, tmp_path, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


def test_the_experiments_are_understood(tmp_path, monkeypatch, capsys):
    """All lines of results/vision/run.sh; each run has the updates of its kind, and its end."""
    line = "results/vision/run.sh --data D"
    commands = {tuple(command): command for command in printed(line, tmp_path)}
    runs: dict[str, list] = {}
    for command in commands.values():
        understood(command, tmp_path, monkeypatch, capsys)
        if command[1] == "launch":
            name = Path(command[command.index("--out") + 1]).name
            runs[name] = launched(command, monkeypatch, capsys)
    assert sum(command[1] == "report" for command in commands.values()) == 9
    assert {f"{name}-seed{s}" for name in ("all_reduce", "halved") for s in (1, 2, 3)} <= set(runs)
    assert {f"decayed-part8-seed{seed}" for seed in (1, 2, 3)} <= set(runs)
    for groups in runs.values():
        for config in groups:
            images = int(50000 * config.fraction)
            seen = images // (config.batch_size * config.update_freq * (3 - len(groups)))
            assert config.epochs >= 15
            assert config.max_update is None
            updates = seen * config.epochs * config.update_freq
            assert 1728 <= updates <= 1746
            assert config.milestones[-1] < config.epochs


@pytest.mark.parametrize("script", [*SCRIPTS, *(f"--only V{i}" for i in range(1, 10))])
def test_every_figure_has_its_command(script):
    text = (EXAMPLES.parent / "REPRODUCTION.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("bash ")]
    wanted = script.removeprefix("--only ")
    assert any(re.search(rf"\b{re.escape(wanted)}\b", line) for line in commands)


@pytest.mark.parametrize("gpus", [2, 8, 16])
def test_any_number_of_gpus_makes_the_papers_batch(gpus, tmp_path, monkeypatch, capsys):
    runs = groups_of(f"imagenet_figure1.sh --gpus {gpus}", tmp_path, monkeypatch, capsys)
    (one,), two = runs["resnet50-all_reduce-seed1"], runs["resnet50-halved-seed1"]
    assert [config.seed for config in two] == [1, 1 + SEED_STEP]
    for config, groups in ((one, 1), *((config, 2) for config in two)):
        assert config.codistill_num_groups == groups
        images = config.batch_size * config.update_freq * gpus // groups
        assert (config.batch_size, images) == (32, 512 // groups)
        # The paper: warm-up to 0.1 b / 256.
        assert config.learning_rate(images).peak == pytest.approx(0.1 * images / 256)


def test_the_figures_have_the_papers_points(tmp_path, monkeypatch, capsys):
    def first(figure: str):
        runs = groups_of(f"imagenet_figure{figure}.sh --gpus 2", tmp_path, monkeypatch, capsys)
        return [groups[0] for groups in runs.values()]

    batches = [config.batch_size * config.update_freq for config in first("3")]
    assert batches == [128, 256, 512, 1024, 2048]
    assert {config.arch for config in first("9")} == {"resnet152", "resnext152_32x8d"}
    assert {config.lr_schedule for config in first("4")} == {"cosine"}
    parts = [(c.data_fraction, c.epochs) for c in first("6") if c.codistill_num_groups == 2]
    assert parts == [("1", 45), ("1/2", 90), ("1/4", 180), ("1/8", 360)]
    robust = first("7")
    intervals = [config.codistill_interval for config in robust if config.lr == 0.1]
    assert intervals == [2500, 5000, 1250, 625]
    assert [c.lr for c in robust if c.codistill_interval == 2500] == [0.1, 0.2, 0.4, 0.8]
    assert {config.codistill_alpha_schedule for config in first("13")} == {"constant"}
    out_of_the_box, constant = first("1")[1], first("12")[2]
    for config, milestones in ((out_of_the_box, [15, 30, 40]), (constant, [18, 38, 44])):
        assert config.lr_milestones == config.codistill_alpha_milestones == milestones
        assert config.weight_decay_schedule == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("imagenet_figure1.sh --gpus 3", "--gpus 3 does not divide 16 workers"),
        ("imagenet_figure1.sh --gpus 1 --only resnet50-halved", "does not divide into 2 groups"),
        ("imagenet_figure1.sh --only fig2", "--only fig2 is unknown; the runs are: resnet50-all"),
        ("imagenet_figure1.sh --precision amp", "--precision amp is unknown; give fp16, bf16 or"),
        ("imagenet_figure1.sh --lr 1", "unknown argument '--lr'; --help says what there is, flag"),
        ("imagenet_figure1.sh --gpus", "--gpus needs a value"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(line, says, tmp_path):
    assert says in example(line, tmp_path, status=1)
    assert not list(tmp_path.iterdir())


# The others run with --full, in test_reproduction.py.
def test_a_script_runs(tmp_path):
    """Two runs, and their report."""
    write_images(tmp_path / "data", train=24, valid=3)
    line = f"imagenet_figure1.sh --cpu --gpus 2 --data data --out out -- {shlex.join(TINY)}"
    example(line, tmp_path)
    assert "top-1" in (tmp_path / "out/report/figure1/report.md").read_text()


def test_the_lines_of_the_readme_are_understood(tmp_path, monkeypatch, capsys):
    text = (EXAMPLES.parent / "README.md").read_text()
    (section,) = re.findall(r"^## Images\n(.*?)^## ", text, re.M | re.S)
    lines = re.findall(r"^    (\w.*?)(?<!\\)$", section, re.M | re.S)
    assert len(lines) == 3
    monkeypatch.chdir(EXAMPLES.parent)
    for line in lines:
        understood(shlex.split(line.replace("\\\n", " ")), tmp_path, monkeypatch, capsys)
