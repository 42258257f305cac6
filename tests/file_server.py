"""A web server whose answers break off, lie or never end, as told."""

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class FileServer(http.server.ThreadingHTTPServer):
    """Serves files; a break-off after so many bytes, ranges or not, as told.

    An answer in `answers` is given instead of the one that would be right: a function of the
    handler and the byte from which on the file is asked for.  The last one is given again and
    again.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.answers: list[Callable[[Handler, int | None], None]] = []
        self.ranges = True
        self.sent = 0
        self.stopped = threading.Event()
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        self.close_connection = True
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else None
        answers = self.server.answers
        if answers:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            with suppress(ConnectionError):
                answer(self, start)
            return
        self.right(start)

    def right(self, start: int | None) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        version = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        if start and self.server.ranges and self.headers.get("If-Range", version) == version:
            if start >= len(body):
                self.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
                return None
            self.head(
                206,
                Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}",
                Content_Length=len(body) - start,
                ETag=version,
            )
        else:
            start = 0
            self.head(200, ETag=version, Content_Length=len(body))
        limit = self.server.break_after.pop(0) if self.server.break_after else len(body)
        self.wfile.write(body[start : start + limit])
        return None

    def head(self, status: int, **headers: object) -> None:
        """Send a status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, data: bytes) -> None:
        """Send part of a body, and count it."""
        self.wfile.write(data)
        self.server.sent += len(data)

    def for_ever(self, data: bytes, pause: float = 0.0) -> None:
        """Send the same bytes until nobody listens, or they are 100 MB: that is for ever here."""
        most = self.server.sent + 100_000_000
        while self.server.sent < most and not self.server.stopped.wait(pause):
            self.send(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run one for as long as it is needed."""
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()
