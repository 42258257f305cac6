"""A web server whose answers break off, as told."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FileServer(http.server.ThreadingHTTPServer):
    """Serves files; a break-off after so many bytes, ranges or not, as told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.ranges = True
        self.content_type = "application/x-tar"
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        version = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        start = 0
        if asked and self.server.ranges and self.headers.get("If-Range", version) == version:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        limit = self.server.break_after.pop(0) if self.server.break_after else len(body)
        self.wfile.write(body[start : start + limit])
        self.close_connection = True
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """Run one for as long as it is needed."""
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
