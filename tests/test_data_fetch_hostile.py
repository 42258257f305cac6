"""What a server sends is data: answers that lie, never end, or are something else."""

import errno
import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import fetch
import pytest
import unpack
from data_scripts import SCRIPTS, packed, random_archive

BODY = random_archive(400_000)
DISK = 5_000_000

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of milliseconds; where the module is one without them, nothing."""
    try:
        import download
    except ImportError:
        return
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(download, "RATE_SECONDS", 0.5)


def catalogue(folder: Path, *urls: str, **known: object) -> Path:
    path = folder / "own.toml"
    lines = [f"{name} = {value!r}" for name, value in known.items()]
    path.write_text(
        f'[c]\ndisk = {DISK}\n[[c.archives]]\nname = "a.tgz"\nurls = {list(urls)}\n'
        + "\n".join(lines)
    )
    return path


def run(folder: Path, *urls: str, **known: object) -> Path:
    """Fetch the archive `a.tgz`; return the folder that it should be in."""
    archives = folder / "archives"
    fetch.main(["--catalogue", str(catalogue(folder, *urls, **known)), "c", str(archives)])
    return archives


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "archives").iterdir())


def refused(folder: Path, match: str, *urls: str, **known: object) -> None:
    """Fetching ends with a sentence, and leaves no archive and no record."""
    with pytest.raises((OSError, ValueError), match=match) as error:
        run(folder, *urls, **known)
    assert str(error.value).isprintable()
    assert not {"a.tgz", "SHA256SUMS"} & set(names(folder))


def whole(folder: Path, body: bytes = BODY) -> None:
    """What is there is the archive and its record, and nothing else."""
    assert names(folder) == ["SHA256SUMS", "a.tgz"]
    assert (folder / "archives/a.tgz").read_bytes() == body
    record = (folder / "archives/SHA256SUMS").read_text()
    assert record == f"{hashlib.sha256(body).hexdigest()}  a.tgz\n"


def right(handler, start):
    handler.right(start)


# Answers without end.


def endless(handler, start):
    handler.head(200)
    handler.send(BODY)
    handler.for_ever(random.Random(2).randbytes(1 << 16))


def endless_chunked(handler, start):
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked")
    handler.send(b"%x\r\n%b\r\n" % (len(BODY), BODY))
    handler.for_ever(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def endless_announced(handler, start):
    handler.head(200, Content_Length=10**14)
    handler.send(BODY)
    handler.for_ever(bytes(1 << 16))


def endless_redirect(handler, start):
    handler.head(302, Location="/there")
    handler.for_ever(bytes(1 << 16))


def endless_page(handler, start):
    handler.head(200)
    handler.for_ever(b"<p>Please wait while we prepare your download.</p>")


def endless_error(handler, start):
    handler.head(404)
    handler.for_ever(bytes(1 << 16))


@pytest.mark.parametrize(
    ("answer", "known", "match"),
    [
        (endless, {}, "larger than 5.0 MB, which the whole preparation takes"),
        (endless, {"bytes": len(BODY)}, "larger than 0.4 MB, which archives.toml lists"),
        (endless_chunked, {}, "larger than 5.0 MB"),
        (endless_chunked, {"bytes": len(BODY)}, "larger than 0.4 MB"),
        (endless_announced, {}, "larger than 5.0 MB"),
        (endless_redirect, {}, "redirected more than 5 times"),
        (endless_page, {}, "perhaps a web page"),
        (endless_error, {}, "HTTP 404"),
    ],
)
def test_an_answer_without_end_is_given_up(answer, known, match, server, tmp_path):
    server.answers = [answer]
    refused(tmp_path, match, server.url + "/a.tgz", **known)
    assert names(tmp_path) == []
    # What is in the buffers of both sides comes on top.
    assert server.sent < 40_000_000


def test_the_next_address_is_tried_after_a_hostile_one(server, tmp_path):
    server.files["/b/a.tgz"] = BODY

    def endless_at_first(handler, start):
        endless(handler, start) if handler.path == "/a.tgz" else handler.right(start)

    server.answers = [endless_at_first]
    run(tmp_path, server.url + "/a.tgz", server.url + "/b/a.tgz")
    whole(tmp_path)


# Answers that bring next to nothing.


def trickle(handler, start):
    handler.head(200, Content_Length=len(BODY))
    handler.send(BODY[:10])
    handler.for_ever(b"x", pause=0.05)


def trickled_headers(handler, start):
    handler.send(b"HTTP/1.0 200 OK\r\nX-Long: ")
    handler.for_ever(b"x", pause=0.05)


def trickled_status(handler, start):
    handler.for_ever(b"H", pause=0.05)


def trickled_trailers(handler, start):
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked")
    handler.send(b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY))
    handler.for_ever(b"A: b\r\n", pause=0.05)


def tiny_chunks(handler, start):
    """Many bytes a second, and hardly one of them is of the file."""
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked")
    handler.send(b"2\r\n" + BODY[:2] + b"\r\n")
    handler.for_ever(b"1;" + b"x" * 60_000 + b"\r\nx\r\n", pause=0.05)


def continues(handler, start):
    for _ in range(10_000):
        handler.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if handler.server.stopped.wait(0.05):
            return


def silence(handler, start):
    handler.head(200, Content_Length=len(BODY))
    handler.server.stopped.wait()


@pytest.mark.parametrize(
    "answer",
    [
        trickle,
        trickled_headers,
        trickled_status,
        trickled_trailers,
        tiny_chunks,
        continues,
        silence,
    ],
)
def test_a_trickle_is_asked_again_and_then_given_up(answer, server, tmp_path):
    server.answers = [answer]
    refused(
        tmp_path, "bytes came in 0.5 seconds, fewer than 65536|timed out", server.url + "/a.tgz"
    )
    assert 3 <= len(server.requests) <= 4


def test_a_trickle_that_recovers_is_no_failure(server, tmp_path):
    server.files["/a.tgz"] = BODY
    server.answers = [trickled_headers, right]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def test_a_server_that_goes_on_by_a_few_bytes_each_time_is_given_up(server, tmp_path):
    def ten_bytes(handler, start):
        start = start or 0
        status = 206 if start else 200
        handler.head(
            status,
            Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}",
            Content_Length=len(BODY) - start,
        )
        handler.send(BODY[start : start + 10])

    server.answers = [ten_bytes]
    refused(tmp_path, "closed too early|IncompleteRead", server.url + "/a.tgz")
    assert len(server.requests) == 3


def test_a_server_that_begins_anew_each_time_is_given_up(server, tmp_path):
    server.files["/a.tgz"] = BODY
    server.ranges = False
    server.break_after = [200_000, 150_000] * 10
    refused(tmp_path, "closed too early|IncompleteRead", server.url + "/a.tgz")
    assert len(server.requests) == 4


def closed_at_once(handler, start):
    pass


def empty(handler, start):
    handler.head(200, Content_Length=0)


def empty_without_length(handler, start):
    handler.head(200)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (closed_at_once, "without response"),
        (empty, "sent an empty file"),
        (empty_without_length, "sent an empty file"),
    ],
)
def test_an_answer_without_content_is_asked_again_and_then_given_up(
    answer, match, server, tmp_path
):
    server.answers = [answer]
    refused(tmp_path, match, server.url + "/a.tgz")
    assert len(server.requests) == 3


# Answers in part.


def half(handler, start):
    """The first half; the connection is closed then."""
    handler.head(200, Content_Length=len(BODY))
    handler.send(BODY[: len(BODY) // 2])


def part(shift: int = 0, total: object = len(BODY), more: int = 0, **headers: object):
    """An answer to a request for a part, shifted, and of another size than it says."""

    def answer(handler, start):
        if start is None:
            return half(handler, start) if not seen else handler.right(start)
        begin = start + shift
        said = {
            "Content_Range": f"bytes {begin}-{len(BODY) - 1}/{total}",
            "Content_Length": len(BODY) - begin + more,
        }
        said |= headers
        seen.append(start)
        handler.head(206, **{name: value for name, value in said.items() if value is not None})
        return handler.send(BODY[begin:] + bytes(more))

    seen: list[int] = []
    return answer


@pytest.mark.parametrize(
    "answer",
    [
        part(shift=-1),
        part(shift=100),
        part(shift=-(len(BODY) // 2)),
        part(total=len(BODY) + 1),
        part(total=len(BODY) - 1),
        part(total=1),
        part(more=10),
        part(Content_Range=None),
        part(Content_Range="bytes */*"),
        part(Content_Range="bytes 1-0/5", Content_Length=None),
        part(Content_Range="bytes -5-10/20"),
        part(Content_Range=f"bytes {'9' * 5000}-{'9' * 5000}/*"),
        part(Content_Range="lines 1-2/3"),
    ],
)
def test_a_part_that_does_not_continue_the_file_is_not_appended(answer, server, tmp_path):
    server.files["/a.tgz"] = BODY
    server.answers = [answer]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def test_a_part_that_nobody_asked_for_is_no_file(server, tmp_path):
    def unasked(handler, start):
        handler.head(
            206, Content_Range=f"bytes 0-{len(BODY) - 1}/{len(BODY) * 2}", Content_Length=len(BODY)
        )
        handler.send(BODY)

    server.answers = [unasked]
    refused(tmp_path, "asked for the bytes from 0 on", server.url + "/a.tgz")


def test_a_part_without_a_total_is_completed(server, tmp_path):
    server.files["/a.tgz"] = BODY
    server.answers = [
        half,
        part(total="*"),
        right,
    ]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def test_pieces_of_two_files_are_fetched_anew(server, tmp_path):
    """The server does not say that it has another version by now."""
    other = random_archive(400_000, seed=1)
    assert len(other) == len(BODY)
    server.files["/a.tgz"] = other

    def rest_of_other(handler, start):
        said = f"bytes {start}-{len(other) - 1}/{len(other)}"
        handler.head(206, Content_Range=said, Content_Length=len(other) - start)
        handler.send(other[start:])

    server.answers = [half, rest_of_other, right]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path, other)
    assert [asked is None for _, asked in server.requests] == [True, False, True]


def test_a_part_of_something_else_is_not_continued(server, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.tgz.part").write_bytes(b"<html>")
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def test_an_impossible_416_is_no_proof(server, tmp_path):
    """The server says that the half is all, and never has the rest."""

    def no_more(handler, start):
        if start is None:
            return half(handler, start)
        return handler.head(416, Content_Range=f"bytes */{start}", Content_Length=0)

    server.answers = [no_more]
    refused(tmp_path, "does not have the rest", server.url + "/a.tgz")


# Lengths that lie.


def length(value: object, body: bytes = BODY):
    def answer(handler, start):
        handler.head(200, Content_Length=value)
        handler.send(body)

    return answer


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (len(BODY) - 1, "cannot be read to its end|mark at the end"),
        (len(BODY) // 2, "cannot be read to its end"),
        (len(BODY) + 1, "closed too early|IncompleteRead|does not have the rest|asked for"),
        (-1, "where a number of bytes must be"),
        ("many", "where a number of bytes must be"),
        ("\x1b[2J", "where a number of bytes must be"),
        ("9" * 5000, "where a number of bytes must be"),
    ],
)
def test_a_length_that_lies_proves_nothing(value, match, server, tmp_path):
    server.answers = [length(value)]
    refused(tmp_path, match, server.url + "/a.tgz")


def test_two_lengths_are_refused(server, tmp_path):
    def two(handler, start):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.send(BODY)

    server.answers = [two]
    refused(tmp_path, "two lengths", server.url + "/a.tgz")


# Redirects.


def redirect(location: str):
    def answer(handler, start):
        if handler.path == "/a.tgz":
            handler.head(302, Location=location)
        else:
            handler.right(start)

    return answer


def test_a_redirect_may_lead_to_another_path(server, tmp_path):
    server.files["/there/%C3%BC%20b.tgz"] = BODY
    server.answers = [redirect("/there/%C3%BC b.tgz")]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1:1/a.tgz", "file:{path}", "data:,x", "gopher://x", "http://[", ""]
)
def test_a_redirect_to_another_scheme_is_refused(location, server, tmp_path):
    (tmp_path / "secret.tgz").write_bytes(BODY)
    path = f"//{tmp_path}/secret.tgz"
    server.answers = [redirect(location.format(path=path))]
    refused(tmp_path, "redirected to '.*', which is no http", server.url + "/a.tgz")
    assert len(server.requests) == 1


def test_a_redirect_does_not_leave_https():
    import download

    assert download._redirected("https://a/b", "/c") == "https://a/c"
    with pytest.raises(fetch.Unreachable, match="which is no https"):
        download._redirected("https://a/b", "http://a/c")


@pytest.mark.parametrize("address", ["file://{folder}/x.tgz", "ftp://127.0.0.1:1/a.tgz", "x://"])
def test_an_address_of_another_scheme_is_refused(address, tmp_path):
    (tmp_path / "x.tgz").write_bytes(BODY)
    refused(tmp_path, "only http:// and https://", address.format(folder=tmp_path))


# What is not the archive.


def coded(handler, start):
    """gzip once more, on the way."""
    again = gzip.compress(BODY)
    handler.head(200, Content_Length=len(again), Content_Encoding="gzip")
    handler.send(again)


def test_a_content_encoding_is_not_asked_for_and_not_taken(server, tmp_path):
    server.answers = [coded]
    refused(tmp_path, "broken or not the archive", server.url + "/a.tgz")


def test_a_content_encoding_that_names_the_archives_own_is_harmless(server, tmp_path):
    def labelled(handler, start):
        handler.head(200, Content_Length=len(BODY), Content_Encoding="x-gzip")
        handler.send(BODY)

    server.answers = [labelled]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def sparse() -> bytes:
    """A tar with a sparse file of an exabyte."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/b")
        info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
        info.pax_headers |= {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**18)}
        tar.addfile(info)
    return buffer.getvalue()


def large_header() -> bytes:
    """A tar with a pax header that tarfile would read into memory as a whole."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/b")
        info.pax_headers = {"comment": "x" * 2_000_000}
        tar.addfile(info)
    return buffer.getvalue()


TAR = gzip.decompress(BODY)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (BODY[:-1], "cannot be read to its end"),
        (BODY[:200_000], "cannot be read to its end"),
        (BODY[:-8] + bytes(8), "cannot be read to its end: CRC"),
        (BODY + b"more", "cannot be read to its end"),
        (BODY[:1000] + bytes(1000) + BODY[2000:], "cannot be read to its end"),
        (b"\x1f\x8b", "cannot be read to its end"),
        (gzip.compress(b"no tar" * 1000, mtime=0), "it is not a tar"),
        (gzip.compress(b"short", mtime=0), "ends inside a header"),
        (gzip.compress(TAR[:1000], mtime=0), "ends inside a file"),
        (gzip.compress(TAR[:1] + b"x" + TAR[2:], mtime=0), "checksum is wrong"),
        (gzip.compress(bytes(DISK + 1), mtime=0), "larger than 5000000 bytes"),
        (packed({"bomb": bytes(DISK)}), "larger than 5000000 bytes"),
        (large_header(), "a name or a header in it has 20000.. bytes"),
        (b"<html>no archive</html>", "perhaps a web page"),
        (b"\n", "perhaps a web page"),
    ],
)
def test_what_is_not_whole_is_neither_kept_nor_recorded(body, match, server, tmp_path):
    server.files["/a.tgz"] = body
    refused(tmp_path, match, server.url + "/a.tgz")
    assert names(tmp_path) == []
    # Put there by hand, it stays, and is not recorded either.
    (tmp_path / "archives/a.tgz").write_bytes(body)
    with pytest.raises(ValueError, match=r"a\.tgz is broken .*; delete it"):
        run(tmp_path, server.url + "/a.tgz")
    assert names(tmp_path) == ["a.tgz"]


# Up to the end of the last file's last block.
UNMARKED = TAR.rstrip(b"\0") + bytes(-len(TAR.rstrip(b"\0")) % 512)


@pytest.mark.parametrize(
    ("packed_in_it", "doubt"),
    [
        (UNMARKED, "the mark at the end of a tar is missing"),
        (UNMARKED + bytes(512), "the mark at the end of a tar is missing"),
        (TAR + TAR, "something follows the end of the tar"),
    ],
)
def test_what_may_not_be_whole_is_not_recorded(packed_in_it, doubt, server, tmp_path, capsys):
    server.files["/a.tgz"] = gzip.compress(packed_in_it)
    for _ in range(2):
        run(tmp_path, server.url + "/a.tgz")
        assert f"a.tgz: its SHA-256 is not recorded, as it may not be whole: {doubt}" in (
            capsys.readouterr().out
        )
        assert names(tmp_path) == ["a.tgz"]


def test_a_sparse_file_without_end_is_not_unpacked(tmp_path):
    (tmp_path / "a.tgz").write_bytes(sparse())
    with pytest.raises(ValueError, match="has 1000000000000000000 bytes"):
        unpack.unpack(tmp_path / "a.tgz", ["b"], tmp_path)
    assert not (tmp_path / "b").exists()


def test_an_answer_that_ends_with_the_connection_is_judged_by_its_content(server, tmp_path):
    server.answers = [lambda handler, start: (handler.head(200), handler.send(BODY[:-100]))]
    refused(tmp_path, "cannot be read to its end", server.url + "/a.tgz")
    server.answers = [lambda handler, start: (handler.head(200), handler.send(BODY))]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


def test_words_of_the_server_are_made_printable(server, tmp_path, capsys):
    def shouting(handler, start):
        handler.wfile.write(b"HTTP/1.0 403 \x1b[31mNo\x07\r\nContent-Length: 0\r\n\r\n")

    server.answers = [shouting]
    refused(tmp_path, r"HTTP 403 \\x1b\[31mNo\\x07", server.url + "/a.tgz")
    server.answers = [redirect("ftp://\x1b]0;x\x07")]
    refused(tmp_path, "which is no http", server.url + "/a.tgz")
    server.answers = [lambda handler, start: handler.wfile.write(b"\x1b[31m\n\n")]
    refused(tmp_path, r"\\x1b\[31m", server.url + "/a.tgz")
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_a_validator_that_is_none_is_not_sent_back(server, tmp_path):
    def folded(handler, start):
        handler.head(200, ETag='"a\r\n X-Forged: 1"', Content_Length=len(BODY))
        handler.send(BODY[: len(BODY) // 2])

    server.files["/a.tgz"] = BODY
    asked = []
    server.answers = [
        folded,
        lambda handler, start: (asked.append(handler.headers), handler.right(start)),
    ]
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)
    assert "If-Range" not in asked[0]
    assert "X-Forged" not in asked[0]


# This side.


def test_a_full_disk_ends_it_with_a_sentence_and_keeps_the_part(server, tmp_path, monkeypatch):
    import download

    server.files["/a.tgz"] = BODY
    monkeypatch.setattr(download, "BLOCK", 1000)
    real = download._open_part

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, block):
            if self.file.tell() >= 5000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(block[:700])

    monkeypatch.setattr(download, "_open_part", lambda part, start: Full(real(part, start)))
    refused(
        tmp_path, r"cannot be written \(No space left on device\); make room", server.url + "/a.tgz"
    )
    assert len(server.requests) == 1
    assert (tmp_path / "archives/a.tgz.part").stat().st_size >= 5000
    monkeypatch.setattr(download, "_open_part", real)
    run(tmp_path, server.url + "/a.tgz")
    whole(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_in_the_middle(server, tmp_path):
    disk = tmp_path / "archives"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        server.files["/a.tgz"] = BODY
        refused(tmp_path, "takes 0.4 MB more and its disk has 0.2 MB free", server.url + "/a.tgz")
        # Without a length, it is noticed when it is full.
        server.answers = [lambda handler, start: (handler.head(200), handler.send(BODY))]
        refused(tmp_path, r"\(No space left on device\); make room", server.url + "/a.tgz")
        assert len(server.requests) == 2
        (tmp_path / "mirror").mkdir()
        (tmp_path / "mirror/a.tgz").write_bytes(BODY)
        with pytest.raises(OSError, match=r"cannot be copied .*\(No space left on device\)"):
            fetch.main(
                ["--catalogue", str(catalogue(tmp_path)), "--mirror", str(tmp_path / "mirror")]
                + ["c", str(disk)]
            )
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["a.tgz", "a.tgz.part"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_what_is_in_the_way_is_named(kind, name, server, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "archives").mkdir()
    place = tmp_path / "archives" / name
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((OSError, ValueError), match=rf"{name} is in the way"):
        run(tmp_path, server.url + "/a.tgz")
    assert not (tmp_path / "elsewhere").exists()


def test_the_record_is_read_as_sha256sum_does(server, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "archives").mkdir()
    value = hashlib.sha256(BODY).hexdigest()
    record = tmp_path / "archives/SHA256SUMS"
    other = "0" * 64
    record.write_text(f"# a comment\n\n{value.upper()} *a.tgz\r\n{other}  b c.tgz\n")
    run(tmp_path, server.url + "/a.tgz")
    assert record.read_text() == f"{value}  a.tgz\n{other}  b c.tgz\n"
    record.write_text(f"{other}  a.tgz\n")
    with pytest.raises(ValueError, match="but its first download had 0000"):
        run(tmp_path)
    assert record.read_text() == f"{other}  a.tgz\n"


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\n",
        b"\xff\xfe\n",
        b"0" * 63 + b"  a.tgz\n",
        b"0" * 64 + b"  \n",
        b"0" * 64 + b"  a.tgz\n" + b"1" * 64 + b"  a.tgz\n",
        b"\x1b[2J" + b"0" * 64 + b"  a.tgz\n",
        b"0" * 2_000_000,
    ],
)
def test_a_record_with_odd_lines_is_named_and_left_alone(content, server, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "archives").mkdir()
    record = tmp_path / "archives/SHA256SUMS"
    record.write_bytes(content)
    with pytest.raises(ValueError, match="SHA256SUMS.*delete it if you trust") as error:
        run(tmp_path, server.url + "/a.tgz")
    assert str(error.value).isprintable()
    assert record.read_bytes() == content


@pytest.mark.parametrize("name", ["../a.tgz", "a/b.tgz", "\x1b[2J", "-a", ".a", "", "SHA256SUMS"])
def test_an_archive_cannot_have_any_name(name, tmp_path):
    with pytest.raises(ValueError, match="an archive cannot have the name") as error:
        fetch.Archive(name, ())
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "[c]\ndisk = 1\narchives = 3\n",
        "[c]\ndisk = 1\n[[c.archives]]\nname = 'a.tgz'\n",
        "[c]\ndisk = 1\n[[c.archives]]\nname = 'a.tgz'\nurls = []\nsha1 = 'x'\n",
        "[c]\ndisk = 1\n[[c.archives]]\nname = 'a.tgz'\nurls = []\nsha256 = 'x'\n",
        "[c]\ndisk = 1\n[[c.archives]]\nname = 'a.tgz'\nurls = []\nbytes = -1\n",
        "[c]\n[[c.archives]]\nname = 'a.tgz'\nurls = []\n",
    ],
)
def test_a_catalogue_that_is_malformed_is_named(text, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ValueError, match=r"own\.toml is malformed at 'c'"):
        fetch.read_corpus(tmp_path / "own.toml", "c")


def test_the_program_ends_with_a_sentence(server, tmp_path):
    server.answers = [endless_page]
    program = subprocess.run(
        [sys.executable, SCRIPTS / "fetch.py", "c", tmp_path / "archives"]
        + ["--catalogue", catalogue(tmp_path, server.url + "/a.tgz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 1
    assert program.stderr.startswith("fetch.py: a.tgz cannot be had")
    assert "Traceback" not in program.stderr
