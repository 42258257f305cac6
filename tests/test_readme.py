"""The README's table has every flag, and its default."""

import re
from pathlib import Path

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
        else:
            assert type(default)(shown) == default, flag
