"""Hosts that have nothing in common but a server: network namespaces, each with a line to us."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# For tests of networks, by RFC 2544: nobody's real address.
_NETWORK = "198.18"


def why_not() -> str | None:
    """What keeps this machine from having hosts; None if nothing does."""
    if os.geteuid():
        return "needs root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs ip and tc (iproute2)"
    name = f"codistill-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs network namespaces ({made.stderr.strip()})"
    _run("ip", "netns", "del", name)
    return None


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: of the namespace.
        line: our end of its line.
        address: where it reaches us.
    """

    name: str
    line: str
    address: str

    @property
    def within(self) -> list[str]:
        """What goes before a command, to run it there."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Pull the plug: what it sends goes nowhere, and nothing tells it so."""
        _run("ip", "link", "set", self.line, "down")

    def mend(self) -> None:
        """Put the plug back."""
        _run("ip", "link", "set", self.line, "up")

    def limit(self, megabits: float | None, delay_ms: int = 0) -> None:
        """Make its line so fast, megabits a second each way, and so long; None: no limit."""
        for tc, end in ((["tc"], self.line), (["tc", "-n", self.name], "eth0")):
            # There is none to remove on a new line.
            subprocess.run([*tc, "qdisc", "del", "dev", end, "root"], capture_output=True)
            if megabits is not None:
                _slow(tc, end, megabits, delay_ms)

    @property
    def own_address(self) -> str:
        """Where we, and others that it sees, reach it."""
        return self.address.removesuffix(".1") + ".2"

    def bytes_on_the_line(self) -> int:
        """What has gone through its line so far, both ways."""
        folder = Path("/sys/class/net", self.line, "statistics")
        return sum(int((folder / name).read_text()) for name in ("rx_bytes", "tx_bytes"))


@contextlib.contextmanager
def hosts(
    count: int, megabits: float | None, delay_ms: int = 0, meet: bool = False
) -> Iterator[list[Host]]:
    """Make hosts whose lines are so fast and so long; remove them whatever happens.

    A kernel that cannot delay packets only limits the rate.

    Args:
        count: how many.
        megabits: a second, each way; None for as fast as it goes.
        delay_ms: of a packet, each way.
        meet: whether they see each other, through us.
    """
    _clear()
    made: list[Host] = []
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    try:
        if meet:
            forwarding.write_text("1")
        for i in range(count):
            # A name of an interface has at most 15 characters.
            host = Host(f"codistill-{os.getpid()}-{i}", f"cd{os.getpid()}-{i}", f"{_NETWORK}.{i}.1")
            _run("ip", "netns", "add", host.name)
            made.append(host)
            far = ["netns", host.name]
            _run("ip", "link", "add", host.line, "type", "veth", "peer", "name", "eth0", *far)
            _run("ip", "addr", "add", f"{host.address}/24", "dev", host.line)
            _run("ip", "link", "set", host.line, "up")
            there = ["ip", "-n", host.name]
            _run(*there, "addr", "add", f"{_NETWORK}.{i}.2/24", "dev", "eth0")
            _run(*there, "link", "set", "eth0", "up")
            _run(*there, "link", "set", "lo", "up")
            if meet:
                _run(*there, "route", "add", "default", "via", host.address)
            host.limit(megabits, delay_ms)
        yield made
    finally:
        if meet:
            forwarding.write_text(before)
        for host in made:
            _remove(host.name, host.line)


def _clear() -> None:
    """Remove the hosts of processes that were killed: they have the addresses of ours."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for name in re.findall(r"^codistill-\d+-\d+", listed.stdout, re.M):
        pid, number = name.split("-")[1:]
        assert not Path("/proc", pid).exists(), f"process {pid} has hosts of the same addresses"
        _remove(name, f"cd{pid}-{number}")


def _remove(name: str, line: str) -> None:
    subprocess.run(["ip", "netns", "del", name], check=False)
    # It went with the host, both ends, unless a process in there is still alive.
    subprocess.run(["ip", "link", "del", line], check=False, capture_output=True)


def _slow(tc: list[str], line: str, megabits: float, delay_ms: int) -> None:
    rate = ["rate", f"{megabits}mbit"]
    qdisc = [*tc, "qdisc", "add", "dev", line, "root"]
    delayed = [*qdisc, "netem", "delay", f"{delay_ms}ms", *rate]
    if subprocess.run(delayed, capture_output=True).returncode:
        _run(*qdisc, "tbf", *rate, "burst", "64kb", "latency", "200ms")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
