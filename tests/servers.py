"""A real S3 server on loopback, and a TCP proxy that makes it fail.

In a test::

    with s3_server() as server, proxy_to(server.address, tmp_path) as proxy:
        env = server.environment(proxy.address)  # AWS_ENDPOINT_URL and the rest; or environment()
        ...                                      # server.uri("run") is s3://exchange/run
        proxy.say("hang")                        # returns once the proxy does so
        ...
        proxy.say("ok")

The proxy is a script too; it prints its address, and obeys a file that anybody may write::

    python tests/servers.py proxy --listen 127.0.0.1:0 --to HOST:PORT --control FILE

FILE holds one of these (no file is ``ok``); it is looked at ten times a second, and what the proxy
does now is in FILE.now:

    ok                      passes everything on
    refuse                  closes connections, old and new, at once
    hang                    accepts and answers nothing; the connections there are stall
    error                   answers every HTTP request with 503
    slow BYTES_PER_SECOND   passes on so much for each connection and direction
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ports import free_port

BUCKET = "exchange"
PATIENCE_SECONDS = 90


@dataclass(frozen=True)
class S3Server:
    """A server that answers, with an empty bucket.

    Attributes:
        address: HOST:PORT.
        process: the server, for who wants to stop it.
    """

    address: str
    process: subprocess.Popen

    def uri(self, prefix: str, bucket: str = BUCKET) -> str:
        """An exchange in it."""
        return f"s3://{bucket}/{prefix}"

    def environment(self, address: str | None = None) -> dict[str, str]:
        """What a client finds it by; through ``address``, if given."""
        return {
            "AWS_ENDPOINT_URL": f"http://{address or self.address}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs."""

    address: str
    control: Path
    process: subprocess.Popen

    def say(self, mode: str) -> None:
        """Have it behave otherwise, and wait until it does."""
        self.control.write_text(mode)
        state = self.control.with_name(f"{self.control.name}.now")
        _wait(lambda: state.exists() and state.read_text() == mode, self.process)


@contextlib.contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Run an S3 server that listens on ``host``."""
    port = free_port()
    program = str(Path(sys.executable).parent / "moto_server")
    process = subprocess.Popen(
        [program, "-H", host, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = S3Server(f"{host}:{port}", process)
    try:
        _wait(lambda: make_bucket(server.address), process)
        yield server
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def proxy_to(address: str, folder: Path) -> Iterator[Proxy]:
    """Run a proxy in front of ``address``; its control file goes to ``folder``."""
    control = folder / "proxy"
    options = ["--listen", "127.0.0.1:0", "--to", address, "--control", str(control)]
    process = subprocess.Popen(
        [sys.executable, __file__, "proxy", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield Proxy(process.stdout.readline().strip(), control, process)
    finally:
        process.kill()
        process.communicate()


def make_bucket(address: str, bucket: str = BUCKET) -> bool:
    """Make a bucket; False if the server does not answer."""
    request = urllib.request.Request(f"http://{address}/{bucket}", method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except OSError:
        return False


def _wait(done, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert process.poll() is None, f"{process.args} ended with status {process.returncode}"
        assert time.monotonic() < end, f"{process.args} has not come so far"
        time.sleep(0.05)


class FaultyProxy:
    """Passes connections on, in the manner that a file says."""

    def __init__(self, to: str, control: Path) -> None:
        self._to = to
        self._control = control
        self._mode = ""
        self._rate = 0
        self._flowing = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    async def run(self, listen: str) -> None:
        """Serve for ever."""
        self._obey()
        host, port = listen.rsplit(":", 1)
        server = await asyncio.start_server(self._serve, host, int(port))
        host, port = server.sockets[0].getsockname()[:2]
        print(f"{host}:{port}", flush=True)
        while True:
            await asyncio.sleep(0.1)
            self._obey()

    def _obey(self) -> None:
        said = self._control.read_text().strip() if self._control.exists() else "ok"
        if said in ("", self._mode):  # empty: it is just being written
            return
        name, _, number = said.partition(" ")
        if name not in ("ok", "refuse", "hang", "error") and not (
            name == "slow" and number.isdigit() and int(number)
        ):
            print(f"{self._control} says {said!r}, which is no mode", file=sys.stderr)
            return
        self._mode, self._rate = said, int(number or 0)
        if name == "hang":
            self._flowing.clear()
        else:
            self._flowing.set()
        if name in ("refuse", "error"):
            for writer in self._open:
                _reset(writer)
        self._control.with_name(f"{self._control.name}.now").write_text(said)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        # A connection may break at any moment, at either end: that is what this is for.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await self._flowing.wait()
            if self._mode == "refuse":
                _reset(writer)
            elif self._mode == "error":
                await self._answer(reader, writer)
            else:
                await self._pass_on(reader, writer)
        self._open.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        # Closing with the request's body unread would take the answer back.
        with contextlib.suppress(asyncio.TimeoutError):
            while await asyncio.wait_for(reader.read(65536), 2):
                pass

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._to.rsplit(":", 1)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._open.add(far_writer)
        ways = [(reader, far_writer), (far_reader, writer)]
        pumps = [asyncio.create_task(self._pump(*way)) for way in ways]
        # Either side closing ends both: HTTP has no use for a connection that is half open.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._open.discard(far_writer)
        far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(max(1, self._rate // 10) if self._rate else 65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
            if self._rate:
                await asyncio.sleep(len(data) / self._rate)
            await self._flowing.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a reset: what is on its way is lost."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    """Run the proxy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["proxy"])
    parser.add_argument("--listen", required=True, help="HOST:PORT; port 0 takes a free one")
    parser.add_argument("--to", required=True, help="HOST:PORT")
    parser.add_argument("--control", required=True, type=Path, help="file that says what to do")
    args = parser.parse_args()
    asyncio.run(FaultyProxy(args.to, args.control).run(args.listen))


if __name__ == "__main__":
    main()
