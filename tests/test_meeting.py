"""The exchange is met before training, by every worker, whatever has started the process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment
from ports import free_port

from fairseq_codistill.exchange import Store
from fairseq_codistill.exchange.presence import Alive, Presence

SCRIPT = Path(__file__).parent / "met.py"


def meet(places: list[Path], exchange: str, *rest: str, **env: str) -> list[str]:
    """Let one worker in each place (its working directory) join; what each of them says."""
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(len(places)), port, exchange, *rest],
            cwd=place,
            env=environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, place in enumerate(places)
    ]
    said = [worker.communicate(timeout=120) for worker in workers]
    return [out.strip() or err[-500:] for out, err in said]


def nodes(tmp_path: Path, count: int) -> list[Path]:
    places = [tmp_path / f"node-{rank}" for rank in range(count)]
    for place in places:
        place.mkdir()
    return places


def test_workers_of_one_directory_meet(tmp_path):
    assert meet(nodes(tmp_path, 2), str(tmp_path / "exchange")) == ["met", "met"]


@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_a_directory_that_only_one_node_sees(tmp_path, mode):
    """One name, and another directory on each node, as /tmp is."""
    said = meet(nodes(tmp_path, 2), "exchange", mode)
    assert all(
        line.startswith("ExchangeError: --codistill-dir exchange cannot be used") for line in said
    )
    assert "another worker of this group does not see there" in said[0]
    assert "worker 1 of this group does not see there" in said[1]


def test_a_run_that_has_met_its_exchange_does_without_it_in_async_mode_alone(tmp_path):
    (place,) = nodes(tmp_path, 1)
    exchange, save_dir = tmp_path / "exchange", tmp_path / "save"
    rest = ("async", str(save_dir))
    # A counter of restarts is no proof that it was ever met.
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    (said,) = meet([place], str(in_the_way / "x"), *rest, CODISTILL_RESTARTS="3")
    assert said.startswith("ExchangeError: --codistill-dir")
    assert meet([place], str(exchange), *rest) == ["met"]
    assert json.loads((save_dir / "codistill.json").read_text())["met"] == str(exchange)
    exchange.rename(tmp_path / "away")
    exchange.touch()
    assert meet([place], str(exchange), *rest) == ["met"]
    (said,) = meet([place], str(exchange), "lockstep", str(save_dir))
    assert said.startswith("ExchangeError: --codistill-dir")
    # Another address has to be met anew.
    (said,) = meet([place], str(in_the_way / "x"), *rest)
    assert said.startswith("ExchangeError: --codistill-dir")


@pytest.mark.parametrize(
    "address", ["memory://x", "simplecache::s3://bucket/x", "s3://key:hush@bucket/x", "zip://x"]
)
def test_addresses_that_no_exchange_can_have(tmp_path, address):
    (said,) = meet(nodes(tmp_path, 1), address)
    assert said.startswith("ConfigError: --codistill-dir ")
    assert "hush" not in said


class Forgetful(Store):
    """Takes everything and returns nothing, or something else, or lists nothing."""

    def __init__(self, uri: str, fault: str) -> None:
        super().__init__(uri)
        self._fault = fault

    def read(self, name: str, limit: int) -> bytes:
        if self._fault == "nothing":
            raise FileNotFoundError(name)
        data = super().read(name, limit)
        return data.replace(b"mine", b"other") if self._fault == "another" else data

    def names(self, folder: str) -> list[str]:
        return [] if self._fault == "unlisted" else super().names(folder)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nothing", "could not be read back: there is nothing that can be read"),
        ("another", "could not be read back: there is another process's"),
        ("unlisted", "is not among the names that are listed"),
    ],
)
def test_a_store_that_does_not_return_what_it_takes(tmp_path, fault, says):
    store = Forgetful(str(tmp_path), fault)
    presence = Presence(store, 0, Alive("run", "mine"), dict)
    with pytest.raises(OSError, match=says):
        presence.claim()
    assert os.listdir(tmp_path / "group-0") == ["alive.json"]
    # In async mode a run that has met its exchange before goes on.
    presence = Presence(store, 0, Alive("run", "mine"), dict)
    assert presence.claim(needed=False) is False
    presence.release(finished=False)
