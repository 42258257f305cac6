"""The report as one JSON document, whose keys stay as they are."""

from __future__ import annotations

import json
from typing import Any

from fairseq_codistill.status.survey import Member, Report

FORMAT = 1


def as_json(report: Report, indent: int | None = 2) -> str:
    """Give the document described by ``status.KEYS``."""
    launched = report.place.launched
    document = {
        "format": FORMAT,
        "time": report.time,
        "exchange": _unicode(report.place.exchange),
        "launch": None
        if launched is None
        else {
            "out": _unicode(str(launched.out)),
            "run_id": launched.run_id,
            "groups": launched.groups,
            "time": launched.time,
            "launches": launched.launches,
        },
        "problems": list(report.problems),
        "runs": [
            {
                "run_id": run.run_id,
                "time": run.time,
                "groups": [_member(member) for member in run.members],
            }
            for run in report.runs
        ],
    }
    return json.dumps(document, indent=indent)


def _member(member: Member) -> dict[str, Any]:
    snapshot = member.snapshot
    return {
        "group": member.group,
        "state": member.state,
        "silence": member.silence,
        "seed": member.seed,
        "update": member.update,
        "epoch": member.epoch,
        "restarts": member.restarts,
        "peers": [
            {"group": peer, "update": update, "staleness": (member.update or 0) - update}
            for peer, update in member.peers
        ],
        "snapshot": None
        if snapshot is None
        else {
            "update": snapshot.update,
            "epoch": snapshot.epoch,
            "bytes": snapshot.bytes,
            "dtype": snapshot.dtype,
            "age": snapshot.age,
        },
    }


def _unicode(path: str) -> str:
    """Return a path as Unicode; a byte that is not UTF-8 becomes ``\\udc`` and its value."""
    return path.encode(errors="backslashreplace").decode()
