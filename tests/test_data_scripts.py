"""The translation corpora: text as fairseq's own scripts make it, and downloads that fail.

What needs the real corpus is skipped where ../shared/data/iwslt14-de-en is not there.
"""

import functools
import hashlib
import http.server
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacremoses

REPO = Path(__file__).parents[1]
SCRIPTS = REPO / "data-bin-scripts"
SHARED = REPO.parent / "shared/data/iwslt14-de-en"
sys.path.insert(0, str(SCRIPTS))

import fetch  # noqa: E402
import iwslt14_text  # noqa: E402
import lines  # noqa: E402
import moses_text  # noqa: E402
import sample_lines  # noqa: E402
import subwords  # noqa: E402
import unpack  # noqa: E402
import wmt16_text  # noqa: E402

needs_corpus = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the IWSLT'14 data is not beside the project in ../shared/data"
)
LANGUAGES = ("de", "en")


# --- Moses' rules -------------------------------------------------------------------------------


# What tokenizer.perl itself gives; sacremoses alone differs in all but the first two.
@pytest.mark.parametrize(
    ("language", "line", "expected"),
    [
        (
            "en",
            "Mr. Smith's \"dog\" [1990's] cost 5,300, i.e. a lot...",
            "Mr. Smith &apos;s &quot; dog &quot; &#91; 1990 &apos;s &#93; cost 5,300 , "
            "i.e. a lot ...",
        ),
        ("de", "Er sagt's: „z.B. Nr. 3“ & so", "Er sagt &apos; s : „ z.B. Nr. 3 “ &amp; so"),
        ("en", "We live in the U.S.", "We live in the U.S ."),
        ("de", "Um 8 Uhr in Washington D.C.", "Um 8 Uhr in Washington D.C ."),
        ("en", "Tokyo is 東京, isn't it?", "Tokyo is 東京 , isn &apos;t it ?"),
        ("en", "the Thai say อร่อย", "the Thai say อร ่ อย"),
        ("en", "two\x1cparts", "twoparts"),
        ("en", "  ", "  "),
    ],
)
def test_the_tokenizer_does_as_moses(language, line, expected):
    assert moses_text.MosesTokenizer(language)(line) == expected


def test_lower_does_as_perl():
    assert moses_text.lower("ÄÖÜ ẞ ΣΑΣ") == "äöü ß σασ"


def test_clean_keeps_what_clean_corpus_n_keeps():
    long = "x" * 1001
    pairs = [
        ("a  b c ", " d\u00a0e"),  # 3 : 2 is allowed, and spaces are made single
        ("a b c d", "e f"),
        ("", "a"),
        (" ", "a"),
        (long, "a"),
        (long[1:], "a"),
        ("a " * 5, "b " * 6),
        ("a " * 5, "b " * 5),
    ]
    kept = list(moses_text.clean(pairs, max_words=5, max_ratio=1.5))
    assert kept == [("a b c", "d e"), (long[1:], "a"), ("a a a a a", "b b b b b")]


def test_only_a_newline_ends_a_line(tmp_path):
    (tmp_path / "text").write_bytes("a\u2028b\x85c\rd\ne\r\nf \xff".encode("latin-1", "ignore"))
    assert list(lines.read_lines(tmp_path / "text")) == ["ab\ufffdc\rd", "e\r", "f \ufffd"]
    (tmp_path / "text").write_text("a\u2028b\x85c\vd\ne", encoding="utf-8")
    assert list(lines.read_lines(tmp_path / "text")) == ["a\u2028b\x85c\vd", "e"]


def test_texts_of_different_length_are_refused():
    pairs = moses_text.tokenize_pairs((["a", "b"], ["a"]), LANGUAGES)
    with pytest.raises(ValueError, match="only 1 lines of 'en' and more of 'de'"):
        list(pairs)


def test_processes_tokenise_in_order():
    text = [f"Satz {number}, usw." for number in range(5000)]
    assert list(moses_text.tokenize(text, "de", workers=2)) == [
        f"Satz {number} , usw ." for number in range(5000)
    ]


# --- The corpora --------------------------------------------------------------------------------


def pack(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def iwslt_archive(
    path: Path, train: dict[str, list[str]], tests: dict[str, list[list[str]]]
) -> Path:
    """An archive like de-en.tgz, with this text in it."""
    files = {"de-en/README": "made by a test"}
    for language in LANGUAGES:
        head = "<url>http://x</url>\n<talkid>1</talkid>\n<keywords>a, b</keywords>\n"
        # A title and a description are text: the last two lines are in such tags.
        body = [*train[language][:-2], f"<title>{train[language][-2]}</title>"]
        body.append(f"<description>{train[language][-1]}</description>")
        files[f"de-en/train.tags.de-en.{language}"] = head + "".join(f"{x}\n" for x in body)
        for name, part in zip(iwslt14_text.TESTS, tests[language], strict=True):
            xml = "".join(f'<seg id="{n}"> {text} </seg>\n' for n, text in enumerate(part, 1))
            files[f"de-en/{name.format(language)}"] = f'<?xml version="1.0"?>\n<doc>\n{xml}</doc>\n'
    return pack(path, files)


def small_iwslt_archive(path: Path) -> Path:
    train = {
        "de": [f"Das ist Satz {n}, nicht wahr?" for n in range(46)] + ["Eins"],
        "en": [f"That's sentence {n}, isn't it?" for n in range(46)] + ["One two three four"],
    }
    tests = {
        "de": [[f"Das ist Test {n}"] for n in range(5)],
        "en": [[f"That’s test {n}"] for n in range(5)],
    }
    # Not the last pair: those are in the title and the description.
    for text in train.values():
        text.insert(0, text.pop())
    return iwslt_archive(path, train, tests)


def test_iwslt14_text_is_cleaned_split_and_lower_cased(tmp_path, capsys):
    archive = small_iwslt_archive(tmp_path / "de-en.tgz")
    iwslt14_text.main([str(archive), str(tmp_path / "text")])
    parts = {path.name: list(lines.read_lines(path)) for path in (tmp_path / "text").iterdir()}
    assert {name: len(part) for name, part in parts.items()} == {
        **{"train.de": 44, "train.en": 44},
        **{"valid.de": 2, "valid.en": 2},
        **{"test.de": 5, "test.en": 5},
    }
    assert parts["train.de"][0] == "das ist satz 0 , nicht wahr ?"
    # Pairs 23 and 46 of those that cleaning left: "Eins" was too short for its translation.
    assert [line.split()[3] for line in parts["valid.de"]] == ["22", "45"]
    assert parts["valid.en"][1] == "that &apos;s sentence 45 , isn &apos;t it ?"
    assert parts["test.en"] == [f"that &apos;s test {n}" for n in range(5)]
    assert "train: 44 pairs (the whole archive gives 160239)" in capsys.readouterr().out


def test_an_archive_that_lacks_a_file_or_is_broken_is_named(tmp_path):
    archive = pack(tmp_path / "de-en.tgz", {"de-en/a": "a" * 100, "de-en/._b": "no"})
    with pytest.raises(ValueError, match=r"de-en\.tgz has no b: it is another archive"):
        unpack.unpack(archive, ["a", "b"], tmp_path)
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"de-en\.tgz is broken .*; delete it and run again"):
        unpack.unpack(archive, ["a", "b"], tmp_path)


def wmt_sources(folder: Path) -> None:
    folder.mkdir()
    for number, (archive, name) in enumerate(wmt16_text.TRAIN.items()):
        pack(
            folder / archive,
            {
                f"x/{name.format('en')}": f"Sentence {number} isn't long.\n" + "a " * 81 + "\n",
                f"x/{name.format('de')}": f"Satz {number} ist nicht lang.\nb\n",
            },
        )
    sgm = '<doc>\n<seg id="1">Good\n  morning, U.S.</seg>\n<seg id="2"> Bye </seg></doc>\n'
    pack(
        folder / "dev.tgz",
        {
            "dev/newstest2013.en": "Old news\n",
            "dev/newstest2013.de": "Alte Nachricht\n",
            "dev/newstest2014-deen-ref.en.sgm": sgm,
            "dev/newstest2014-deen-src.de.sgm": sgm.replace("Good", "Guten"),
        },
    )


def test_wmt16_text_from_the_sources(tmp_path, capsys):
    wmt_sources(tmp_path / "archives")
    wmt16_text.main(["sources", str(tmp_path / "archives"), str(tmp_path / "text")])
    parts = {path.name: list(lines.read_lines(path)) for path in (tmp_path / "text").iterdir()}
    assert parts["train.en"] == [f"Sentence {n} isn &apos;t long ." for n in range(3)]
    assert parts["train.de"] == [f"Satz {n} ist nicht lang ." for n in range(3)]
    assert (parts["valid.en"], parts["valid.de"]) == (["Old news"], ["Alte Nachricht"])
    assert parts["test.de"] == ["Guten morning , U.S .", "Bye"]
    assert "train: 3 pairs (Google's archive has 4500966)" in capsys.readouterr().out


def wmt_prepared(path: Path) -> Path:
    files = {"bpe.32000": "#version: 0.2\n", "newstest2013.en": "not this\n"}
    for part, name in wmt16_text.PREPARED.items():
        for language in LANGUAGES:
            files[name.format(language)] = f"{part} {language}@@ s\n" * 3
    return pack(path, files)


def test_wmt16_subwords_from_the_prepared_set(tmp_path):
    wmt_prepared(tmp_path / "wmt16_en_de.tar.gz")
    wmt16_text.main(["prepared", str(tmp_path), str(tmp_path / "subwords")])
    names = {path.name for path in (tmp_path / "subwords").iterdir()}
    assert names == {f"{p}.{n}" for p in ("train", "valid", "test") for n in LANGUAGES} | {"code"}
    assert (tmp_path / "subwords/test.de").read_text() == "test de@@ s\n" * 3


def test_bpe_is_that_of_subword_nmt(tmp_path):
    text = [f"{stem}er {stem}en {stem}ste\u00a0x" for stem in ("nied", "wied", "sied")] * 20
    for part in subwords.PARTS:
        for language in LANGUAGES:
            lines.write_lines(tmp_path / f"{part}.{language}", text)
    arguments = ["bpe", str(tmp_path), "--languages", *LANGUAGES, "--size", "12"]
    subwords.main([*arguments, str(tmp_path / "one")])
    subwords.main([*arguments, str(tmp_path / "two"), "--codes", str(tmp_path / "one/code")])
    both = "".join((tmp_path / f"train.{language}").read_text() for language in LANGUAGES)
    for arguments, given, expected in (
        (["learn_bpe", "-s", "12"], both, "code"),
        (["apply_bpe", "-c", str(tmp_path / "one/code")], both[: len(both) // 2], "valid.de"),
    ):
        tool = [sys.executable, "-m", f"subword_nmt.{arguments[0]}", *arguments[1:]]
        result = subprocess.run(tool, input=given, capture_output=True, text=True, check=True)
        assert (tmp_path / "one" / expected).read_text() == result.stdout
        assert (tmp_path / "two" / expected).read_text() == result.stdout


# --- Downloads ----------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
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
    server: Server

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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


BODY = fetch.GZIP + bytes(range(256)) * 4000


def archive_of(body: bytes = BODY, **known: str) -> "fetch.Archive":
    return fetch.Archive("a.tgz", ("http://127.0.0.1:9/a.tgz",), **known)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(fetch.download, "__defaults__", (waited.append,))
    return waited


def test_a_download_that_breaks_off_goes_on(server, waits, tmp_path, capsys):
    server.files["/a.tgz"] = BODY
    server.break_after = [300_000, 0, 0, 300_000]
    path = fetch.get(archive_of(), tmp_path, server.url + "/", {})
    assert path.read_bytes() == BODY
    starts = [asked for _, asked in server.requests]
    assert starts == [None] + ["bytes=300000-"] * 3 + ["bytes=600000-"]
    assert waits == [1.0, 1.0, 3.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]
    out = capsys.readouterr().out
    assert "a.tgz: going on after 0.3 MB" in out
    assert re.search(r"a\.tgz: 1\.0 MB of 1\.0 MB, 100%, [\d.]+ MB/s", out)


def test_a_later_run_goes_on_where_an_earlier_one_ended(server, waits, tmp_path):
    server.files["/a.tgz"] = BODY
    server.break_after = [1000] + [0] * 5
    with pytest.raises(fetch.Unreachable, match="closed too early"):
        fetch.get(archive_of(), tmp_path, server.url, {})
    server.break_after = []
    server.requests.clear()
    assert fetch.get(archive_of(), tmp_path, server.url, {}).read_bytes() == BODY
    assert server.requests == [("/a.tgz", "bytes=1000-")]


def test_a_part_that_was_whole_is_taken(server, waits, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "a.tgz.part").write_bytes(BODY)
    assert fetch.get(archive_of(), tmp_path, server.url, {}).read_bytes() == BODY


@pytest.mark.parametrize("why", ["no ranges", "another version"])
def test_a_download_starts_anew_where_it_cannot_go_on(why, server, waits, tmp_path):
    server.files["/a.tgz"] = BODY
    server.break_after = [1000] + [0] * 5
    with pytest.raises(fetch.Unreachable):
        fetch.get(archive_of(), tmp_path, server.url, {})
    server.break_after = []
    server.ranges = why != "no ranges"
    if why == "another version":
        server.files["/a.tgz"] = BODY[:2] + BODY[:1:-1]
    fetched = fetch.get(archive_of(), tmp_path, server.url, {})
    assert fetched.read_bytes() == server.files["/a.tgz"]


def test_a_dead_link_is_named_with_what_to_do(server, waits, tmp_path):
    with pytest.raises(fetch.Unreachable) as error:
        fetch.get(archive_of(), tmp_path, server.url, {})
    assert f"a.tgz cannot be had ({server.url}/a.tgz: HTTP 404 Not Found)" in str(error.value)
    assert "--mirror URL_OR_FOLDER" in str(error.value)
    assert waits == []
    # Nothing listens there: that is tried again, in vain.
    with pytest.raises(fetch.Unreachable, match="refused"):
        fetch.get(archive_of(), tmp_path, None, {})
    assert waits == list(fetch.WAITS)


def test_the_next_address_is_tried(server, tmp_path):
    server.files["/b/a.tgz"] = BODY
    archive = fetch.Archive("a.tgz", (f"{server.url}/dead/a.tgz", f"{server.url}/b/a.tgz"))
    assert fetch.get(archive, tmp_path, None, {}).read_bytes() == BODY


def test_a_web_page_is_no_archive(server, tmp_path):
    server.files["/a.tgz"] = b"<html>Too large to scan for viruses</html>"
    with pytest.raises(fetch.Unreachable, match="no archive but perhaps a web page"):
        fetch.get(archive_of(), tmp_path, server.url, {})
    assert not list(tmp_path.glob("a.tgz*.part"))


@pytest.mark.parametrize("known", ["sha256", "md5", "recorded"])
def test_a_wrong_checksum_is_named(known, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/a.tgz").write_bytes(BODY)
    right = hashlib.new("md5" if known == "md5" else "sha256", BODY).hexdigest()
    for value in (right, right[::-1]):
        archive = archive_of() if known == "recorded" else archive_of(**{known: value})
        recorded = {"a.tgz": value} if known == "recorded" else {}
        folder = tmp_path / value
        folder.mkdir()
        if value == right:
            fetch.get(archive, folder, str(tmp_path / "mirror"), recorded)
            continue
        for _ in range(2):  # the second time it is there already, and still wrong
            with pytest.raises(ValueError, match=rf"its (SHA256|MD5) is {right}.*{value}; delete"):
                fetch.get(archive, folder, str(tmp_path / "mirror"), recorded)


def test_a_mirror_folder_without_the_archive_is_named(tmp_path):
    with pytest.raises(fetch.Unreachable, match=rf"{tmp_path}/a\.tgz: there is no such file"):
        fetch.get(archive_of(), tmp_path / "x", str(tmp_path), {})


def test_the_first_download_is_recorded_and_checked_afterwards(tmp_path):
    catalogue = tmp_path / "own.toml"
    catalogue.write_text('[c]\ndisk = 1\n[[c.archives]]\nname = "a.tgz"\nurls = []\n')
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/a.tgz").write_bytes(BODY)
    arguments = ["--catalogue", str(catalogue), "--mirror", str(tmp_path / "mirror")]
    arguments += ["c", str(tmp_path / "archives")]
    fetch.main(arguments)
    fetch.main(arguments)
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "archives", check=False)
    assert sums.returncode == 0
    (tmp_path / "archives/a.tgz").write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match="but its first download had"):
        fetch.main(arguments)


def test_too_little_room_is_named_before_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    corpus = fetch.read_corpus(fetch.CATALOGUE, "wmt16")
    with pytest.raises(OSError, match=rf"room for {tmp_path}/x: .* takes 5\.0 GB .* has 3\.0 GB"):
        fetch.check_space(corpus, tmp_path / "x")
    fetch.check_space(corpus, tmp_path / "x", have=2_500_000_000)


def test_the_catalogue_can_be_read_and_lists_what_the_scripts_take():
    names = {
        name: [each.name for each in fetch.read_corpus(fetch.CATALOGUE, name).archives]
        for name in ("iwslt14", "wmt16", "wmt16-sources")
    }
    assert names["iwslt14"] == ["de-en.tgz"]
    assert names["wmt16"] == ["wmt16_en_de.tar.gz"]
    assert names["wmt16-sources"] == [*wmt16_text.TRAIN, "dev.tgz"]
    with pytest.raises(ValueError, match="no corpus 'wmt17', only iwslt14"):
        fetch.read_corpus(fetch.CATALOGUE, "wmt17")


# --- The scripts as they are run ----------------------------------------------------------------


def prepare(script: str, *arguments: object, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=cwd
    )


SCRIPT_NAMES = ["prepare-iwslt14.sh", "prepare-wmt16-en-de.sh"]


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_help_and_wrong_options(script, tmp_path):
    shown = prepare(script, "--help")
    assert shown.returncode == 0
    assert "--mirror URL_OR_FOLDER" in shown.stdout
    for arguments, message in (
        (["--mirrors", "x", "d"], "there is no option '--mirrors'"),
        (["d", "--mirror"], "--mirror needs a value"),
        ([], "give a folder for the data"),
        (["--workers", "many", "d"], "--workers is a number"),
        (["--bpe-codes", tmp_path / "none", "d"], "cannot be read"),
    ):
        result = prepare(script, *arguments)
        assert result.returncode == 1
        assert message in result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("prepare-iwslt14.sh", [], ["fetch.py iwslt14", "subwords.py bpe", "--size 10000"]),
        ("prepare-iwslt14.sh", ["--sentencepiece"], ["subwords.py sentencepiece"]),
        ("prepare-wmt16-en-de.sh", [], ["fetch.py wmt16 ", "--nwordssrc 32768"]),
        (
            "prepare-wmt16-en-de.sh",
            ["--from-sources", "--mirror", "http://m"],
            ["--mirror http://m wmt16-sources", "--size 32000", "--joined-dictionary"],
        ),
    ],
)
def test_dry_run_prints_and_does_nothing(script, arguments, expected, tmp_path):
    result = prepare(script, *arguments, "--dry-run", tmp_path / "data")
    assert result.returncode == 0
    assert not (tmp_path / "data").exists()
    for part in [*expected, "fairseq-preprocess"]:
        assert part in result.stdout


def test_the_prepared_set_cannot_be_cut_anew(tmp_path):
    result = prepare("prepare-wmt16-en-de.sh", "--sentencepiece", tmp_path)
    assert "need --from-sources" in result.stderr


def test_iwslt14_from_a_server_and_a_second_run(server, tmp_path):
    data = tmp_path / "data"
    dead = prepare("prepare-iwslt14.sh", "--mirror", server.url, data)
    assert dead.returncode == 1
    assert "de-en.tgz cannot be had" in dead.stderr
    archive = small_iwslt_archive(tmp_path / "de-en.tgz")
    server.files["/de-en.tgz"] = archive.read_bytes()
    server.break_after = [300]
    server.requests.clear()
    # Relative, as people name folders.
    first = prepare(
        "prepare-iwslt14.sh", "--mirror", server.url, "--workers", 1, "data", cwd=tmp_path
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert [asked for _, asked in server.requests] == [None, "bytes=300-"]
    assert "going on after" in first.stdout
    assert "train: 44 pairs" in first.stdout
    names = {path.name for path in (data / "data-bin").iterdir()}
    assert {"dict.de.txt", "dict.en.txt", "train.de-en.de.bin", "test.de-en.en.idx"} <= names
    second = prepare("prepare-iwslt14.sh", "--mirror", server.url, data)
    assert second.returncode == 0
    assert second.stdout.count("already there") == 3
    assert len(server.requests) == 2
    other = prepare("prepare-iwslt14.sh", "--sentencepiece", data)
    assert "made with other settings" in other.stderr


# --- text of one's own ----------------------------------------------------------------------------


def write_text(folder: Path, counts: tuple[int, int, int]) -> Path:
    """Numbered pairs, of growing length, the German training text compressed."""
    folder.mkdir()
    for part, count in zip(("train", "valid", "test"), counts, strict=True):
        for language, word in (("de", "Wort"), ("en", "word")):
            text = "".join(f"{i} {' '.join([word] * (1 + i % 9))}\n" for i in range(count))
            (folder / f"{part}.{language}").write_text(text)
    plain = folder / "train.de"
    (folder / "train.de.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    return folder


def test_a_part_of_ones_own_text_is_drawn(tmp_path):
    text, data = write_text(tmp_path / "text", (500, 80, 60)), tmp_path / "data"
    options = ["--train-lines", 300, "--held-out-lines", 50, "--vocabulary", 60]
    # Relative, as people name folders.
    first = prepare("prepare-text.sh", "text", "data", *options, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    drawn = [list(lines.read_lines(data / "text" / f"train.{lang}")) for lang in LANGUAGES]
    numbers = [[int(line.split()[0]) for line in side] for side in drawn]
    assert numbers[0] == numbers[1] == sorted(set(numbers[0]))
    assert len(numbers[0]) == 300
    # Drawn from all of it, not the first lines.
    assert len([n for n in numbers[0] if n >= 250]) > 100
    assert len(list(lines.read_lines(data / "text" / "valid.en"))) == 50
    assert (data / "data-bin" / "test.de-en.en.idx").exists()
    second = prepare("prepare-text.sh", text, data, *options)
    assert second.stdout.count("already there") == 3
    other = prepare("prepare-text.sh", text, data, *options[:-1], 70)
    assert "made with other settings" in other.stderr


def test_all_of_ones_own_text_is_taken(tmp_path):
    text = write_text(tmp_path / "text", (40, 8, 6))
    sample_lines.main([str(text), str(tmp_path / "new"), "--languages", *LANGUAGES])
    for part in ("train", "valid", "test"):
        assert (tmp_path / "new" / f"{part}.en").read_text() == (text / f"{part}.en").read_text()


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (lambda text: (text / "test.en").unlink(), [], "has 0 files test.en"),
        (lambda text: (text / "train.de").write_text("x\n"), [], "has 2 files train.de"),
        (lambda text: (text / "valid.en").write_text("1\n2\n"), [], "valid.en ends before line 3"),
        (lambda text: None, ["--train", "41"], "train has 40 lines, fewer than the 41 asked for"),
    ],
)
def test_text_that_cannot_be_drawn_from_is_named(spoil, arguments, says, tmp_path):
    text = write_text(tmp_path / "text", (40, 8, 6))
    spoil(text)
    command = [str(text), str(tmp_path / "new"), "--languages", *LANGUAGES, *arguments]
    with pytest.raises(SystemExit, match=says):
        sample_lines.main(command)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["t"], "give two folders"),
        (["t", "d", "e"], "and not 'e' too"),
        (["t", "d", "--pair", "German"], "--pair German is no pair of languages"),
        (["t", "d", "--vocabulary", "many"], "--vocabulary many is no number"),
        (["t", "d", "--lines", "3"], "there is no option '--lines'"),
    ],
)
def test_wrong_options_for_ones_own_text(arguments, says, tmp_path):
    result = prepare("prepare-text.sh", *arguments)
    assert result.returncode == 1
    assert says in result.stderr
    assert not (REPO / "d").exists()


@pytest.mark.full
def test_wmt16_both_ways_as_run(tmp_path):
    mirror = tmp_path / "mirror"
    wmt_sources(mirror)
    wmt_prepared(mirror / "wmt16_en_de.tar.gz")
    known = re.sub(r"(?m)^(sha256|md5|bytes) = .*\n", "", fetch.CATALOGUE.read_text())
    (tmp_path / "own.toml").write_text(known.replace("_000_000_000", ""))
    for option in ([], ["--from-sources"]):
        data = tmp_path / f"data{len(option)}"
        arguments = [*option, "--mirror", mirror, data]
        wrong = prepare("prepare-wmt16-en-de.sh", *arguments)
        assert "archives.toml lists" in wrong.stderr
        shutil.rmtree(data)
        result = prepare("prepare-wmt16-en-de.sh", "--catalogue", tmp_path / "own.toml", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        assert (data / "data-bin/train.en-de.en.bin").exists()
        dictionaries = [(data / f"data-bin/dict.{name}.txt").read_text() for name in LANGUAGES]
        assert dictionaries[0] == dictionaries[1]


# --- The real corpus ----------------------------------------------------------------------------


def untokenize(line: str, language: str) -> str:
    """A text that Moses makes this lower-case line of.

    The detokenizer alone loses what decides where Moses splits a dot off: the capital after a full
    stop and that of an abbreviation, which lower-casing has taken away, and spaces between dots.
    """
    prefixes = abbreviations(language)
    words = line.split(" ")
    for number, word in enumerate(words):
        after_stop = number and words[number - 1] == "."
        stem = word.removesuffix(".")
        abbreviation = stem not in prefixes and stem.capitalize() in prefixes
        if after_stop or (word != stem and abbreviation):
            words[number] = word.capitalize()
    raw = detokenizer(language).detokenize(words)
    for run in re.findall(r"\S*\.(?: \.+)+", line):
        raw = re.sub(rf" ?{re.escape(run.replace(' ', ''))}", f" {run}", raw, count=1)
    return raw


@functools.cache
def detokenizer(language: str) -> sacremoses.MosesDetokenizer:
    return sacremoses.MosesDetokenizer(language)


@functools.cache
def abbreviations(language: str) -> frozenset[str]:
    return frozenset(moses_text.MosesTokenizer(language).NONBREAKING_PREFIXES)


def corpus_lines(name: str) -> list[str]:
    return list(lines.read_lines(SHARED / name))


def raw_text(name: str, language: str) -> list[str]:
    return [untokenize(line, language) for line in corpus_lines(f"{name}.{language}")]


def differing(left: list[str], right: list[str]) -> int:
    assert len(left) == len(right)
    return sum(one != other for one, other in zip(left, right, strict=True))


@needs_corpus
@pytest.mark.parametrize("language", LANGUAGES)
def test_tokenising_the_test_sets_gives_what_fairseqs_script_gave(language):
    tokenizer = moses_text.MosesTokenizer(language)
    parts = [name.removesuffix(".{}.xml") for name in iwslt14_text.TESTS]
    raw = [line for part in parts for line in raw_text(part, language)]
    made = [moses_text.lower(tokenizer(line)) for line in raw]
    assert differing(made, corpus_lines(f"test.tok.{language}")) == 0


@needs_corpus
@pytest.mark.parametrize("language", LANGUAGES)
def test_applying_the_codes_gives_the_bytes_of_fairseqs_script(language, tmp_path):
    made = subwords.apply_codes(lines.read_lines(SHARED / f"valid.tok.{language}"), SHARED / "code")
    lines.write_lines(tmp_path / "made", made)
    assert (tmp_path / "made").read_bytes() == (SHARED / f"valid.bpe.{language}").read_bytes()


def survives(pair: tuple[str, str]) -> bool:
    """Whether cleaning keeps this pair: the sample was drawn before that, 364 pairs are too odd."""
    one, other = sorted(len(side.split()) for side in pair)
    return other <= 1.5 * one


@pytest.fixture(scope="session")
def reduced_archive(tmp_path_factory) -> Path:
    """de-en.tgz with the sample's 9,504 pairs; after every 22 that cleaning keeps, one of valid."""
    sample = [corpus_lines(f"train10k.tok.{language}") for language in LANGUAGES]
    kept = [survives(pair) for pair in zip(*sample, strict=True)]
    train: dict[str, list[str]] = {}
    for language in LANGUAGES:
        valid = iter(raw_text("valid.tok", language))
        train[language] = []
        count = 0
        for line, keep in zip(raw_text("train10k.tok", language), kept, strict=True):
            train[language].append(line)
            count += keep
            if keep and count % (iwslt14_text.VALID_EVERY - 1) == 0:
                train[language].append(next(valid))
    parts = [name.removesuffix(".{}.xml") for name in iwslt14_text.TESTS]
    tests = {name: [raw_text(part, name) for part in parts] for name in LANGUAGES}
    path = tmp_path_factory.mktemp("mirror") / "de-en.tgz"
    return iwslt_archive(path, train, tests)


@pytest.mark.full
@needs_corpus
def test_a_full_preparation_gives_the_files_of_fairseqs_script(reduced_archive, server, tmp_path):
    server.files["/de-en.tgz"] = reduced_archive.read_bytes()
    data = tmp_path / "data"
    began = time.monotonic()
    result = prepare(
        "prepare-iwslt14.sh", "--mirror", server.url, "--bpe-codes", SHARED / "code", data
    )
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout, f"whole preparation: {time.monotonic() - began:.0f} s", sep="")
    assert "test: 6750 pairs, byte for byte what fairseq's script gives" in result.stdout
    sample = [corpus_lines(f"train10k.tok.{language}") for language in LANGUAGES]
    kept = [survives(pair) for pair in zip(*sample, strict=True)]
    for kind, folder in (("tok", "text"), ("bpe", "subwords")):
        for language in LANGUAGES:
            train = corpus_lines(f"train10k.{kind}.{language}")
            expected = {
                "train": [line for line, keep in zip(train, kept, strict=True) if keep],
                "valid": corpus_lines(f"valid.{kind}.{language}")[: sum(kept) // 22],
                "test": corpus_lines(f"test.{kind}.{language}"),
            }
            for part, text in expected.items():
                made = (data / folder / f"{part}.{language}").read_bytes()
                assert made == "".join(f"{line}\n" for line in text).encode(), f"{kind} of {part}"


@pytest.mark.full
@needs_corpus
@pytest.mark.parametrize("option", [[], ["--sentencepiece"]], ids=["bpe", "sentencepiece"])
def test_a_full_preparation_that_learns_its_subwords(option, reduced_archive, tmp_path):
    data = tmp_path / "data"
    began = time.monotonic()
    result = prepare("prepare-iwslt14.sh", *option, "--mirror", reduced_archive.parent, data)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout, f"whole preparation: {time.monotonic() - began:.0f} s", sep="")
    assert (data / "data-bin/test.de-en.de.bin").exists()
    if not option:
        codes = (data / "subwords/code").read_text(encoding="utf-8").splitlines()
        assert len(codes) == 10_001
