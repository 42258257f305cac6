"""Every command of REPRODUCTION.md: read by what it starts, and with --full run on tiny data."""

import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import BIN, environment
from printed import REPO, example, printed, understood
from test_examples import TINY
from test_vision_examples import TINY as TINY_IMAGES
from vision_harness import write_images

BLOCKS = re.findall(r"^```sh\n(.*?)^```", (REPO / "REPRODUCTION.md").read_text(), re.M | re.S)
LINES = [line for block in BLOCKS for line in block.splitlines()]
# The figures and claims on translation, each under a heading of its own.
HEADINGS = ("Figures 5 and 14", "IWSLT'14", "Figure 16", "Figure 17", "Anil et al.")


def kind(line: str) -> str:
    words = line.split()
    return Path(words[1]).name if words[0] == "bash" else words[1]


def test_every_figure_has_its_command_at_both_scales():
    sections = (REPO / "REPRODUCTION.md").read_text().split("\n## ")
    for heading in HEADINGS:
        (section,) = [text for text in sections if heading in text.split("\n")[0]]
        assert re.search(r"^bash examples/\w+\.sh", section, re.M), heading
        assert re.search(r"^bash results/translation/run\.sh .*--only T\d$", section, re.M), heading


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_understood(line, tmp_path, monkeypatch, capsys):
    words = shlex.split(line)
    if words[0] != "bash":
        # A path in it need not be there.
        understood(words, tmp_path, monkeypatch, capsys)
        return
    for command in printed(shlex.join(words[1:]), tmp_path):
        understood(command, tmp_path, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def scene(corpus, tmp_path_factory):
    """A folder with small stand-ins for the data that the commands name."""
    folder = tmp_path_factory.mktemp("reproduction")
    for name in ("wmt16", "iwslt14"):
        (folder / "data" / name).mkdir(parents=True)
        shutil.copytree(corpus, folder / "data" / name / "data-bin")
    write_images(folder / "data/imagenet", train=24, valid=3)
    # A quarter of an eighth of them has to make a batch.
    write_images(folder / "CIFAR10", train=120, valid=3)
    rng = random.Random(4)
    words = [
        "".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(2, 7))) for _ in range(300)
    ]
    (folder / "TEXT").mkdir()
    for part, count in {"train": 450, "valid": 60, "test": 60}.items():
        pairs = [rng.choices(words, k=rng.randint(3, 8)) for _ in range(count)]
        for language, side in (("de", pairs), ("en", [pair[::-1] for pair in pairs])):
            text = "".join(" ".join(pair) + "\n" for pair in side)
            (folder / "TEXT" / f"{part}.{language}").write_text(text)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("line", [line for line in LINES if "prepare" not in line])
def test_every_command_runs(line, scene):
    """In their order: the later ones need what the earlier ones make."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = [words[0], "--standalone", "--nproc-per-node", "2", *words[4:]]
        # The recipe is named as from the repository.
        words[words.index("--config") + 1] = str(REPO / words[words.index("--config") + 1])
        words += [*TINY_IMAGES, "--amp", "none", "--cpu"]
    if words[0] != "bash":
        command = [str(BIN / words[0]), *words[1:]]
        subprocess.run(command, cwd=scene, env=environment(), check=True, timeout=300)
        return
    if kind(line) == "run.sh":
        if "--only" in words:
            words.append("--trial")
        else:
            # That all of it is what its parts are is said by the commands it prints.
            words += ["--trial", "--dry-run"]
    elif kind(line) == "evaluate.sh":
        # Of eight updates there are no ten checkpoints to average.
        words[2:2] = ["--cpu", "--average", "3"]
        words[2:2] = [] if "--pair" in words else ["--pair", "de-en"]
    elif kind(line).startswith("imagenet_"):
        words += ["--cpu", "--gpus", "2", "--", *TINY_IMAGES]
    else:
        place = words.index("--") if "--" in words else len(words)
        flags = [*TINY, "--source-lang", "de", "--target-lang", "en", "--update-freq", "1"]
        words = [*words[:place], "--cpu", "--gpus", "2", "--", *words[place + 1 :], *flags]
        if kind(line).startswith("sweep_alpha"):
            words[2:2] = ["--points", "1:0.5 1.5:0.1"]
    example(shlex.join(words[1:]), scene, timeout=1500)
