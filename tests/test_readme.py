"""What the README shows is so: every flag and its default, and the example."""

import os
import re
import shlex
import subprocess
from pathlib import Path

from fairseq import options
from harness import BIN, SEED_STEP, environment

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task
from fairseq_codistill.codistillation import CodistillationConfig

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_flag_table_is_complete_and_has_the_defaults():
    rows = dict(re.findall(r"^\| `--(codistill-[a-z-]+)` \|.*\| ([^|]*) \|$", README, re.M))
    config = CodistillationConfig()
    names = {name.replace("_", "-"): getattr(config, name) for name in vars(config)}
    assert rows.keys() == names.keys()
    special = {"codistill-dir": "required when n > 1", "codistill-keep": "3; lockstep: 0"}
    for flag, default in names.items():
        shown = rows[flag].strip("`")
        if flag in special:
            assert shown == special[flag]
        elif default in (None, []):
            assert shown == "none", flag
        elif isinstance(default, bool):
            assert shown == ("on" if default else "off"), flag
        else:
            assert type(default)(shown) == default, flag


def test_the_example_for_gpus_is_understood(tmp_path):
    example = re.search(r"^    codistill launch --groups 2.*?(?=\n\n)", README, re.M | re.S)[0]
    shown = subprocess.run(
        ["bash", "-c", example.replace("codistill launch", "codistill launch --print", 1)],
        cwd=tmp_path,
        env=environment(PATH=f"{BIN}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = [line for line in shown.splitlines() if "fairseq-train" in line]
    assert len(commands) == 2
    for group, command in enumerate(commands):
        words = shlex.split(command)
        words = words[words.index("fairseq-train") + 1 :]
        args = options.parse_args_and_arch(options.get_training_parser(), words)
        assert args.codistill_group == group
        assert (args.max_tokens, args.lr, args.update_freq) == (3584, [0.001], [16])
        assert args.seed == 1 + SEED_STEP * group
    assert not list(tmp_path.iterdir())
