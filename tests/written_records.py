"""A launch.json as launch leaves it, with fields of one's own, by a test that starts nothing."""

import json
from pathlib import Path
from typing import Any


def write_record(out: Path, **fields: Any) -> None:
    """Write one of two groups; a field that is ``...`` is left out."""
    worker = {"argv": ["fairseq-train", "d"], "env": {"CODISTILL_NONCE": "n"}}
    said = {
        "format": 1,
        "run_id": "a",
        "nonces": ["n", "m"],
        "time": "2026-01-01T00:00:00+00:00",
        "directory": str(out),
        "options": ["--groups", "2"],
        "command": ["fairseq-train", "d"],
        "groups": [[worker], [worker]],
        "versions": {"python": "3.11", "torch": None},
        "git_commit": None,
        "exchange": str(out / "exchange"),
        "history": [],
    }
    said |= fields
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: value for name, value in said.items() if value is not ...})
    (out / "launch.json").write_text(text)
