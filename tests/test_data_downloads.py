"""Downloads that break off, fail, or bring something else."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import download
import fetch
import pytest
import wmt16_text
from data_scripts import random_archive

BODY = random_archive(1_000_000)
OTHER = random_archive(1_000_000, seed=1)


def archive_of(**known: str) -> "fetch.Archive":
    return fetch.Archive("a.tgz", ("http://127.0.0.1:9/a.tgz",), **known)


def get(
    archive: "fetch.Archive", folder: Path, mirror: str | None, recorded: dict[str, str]
) -> Path:
    folder.mkdir(exist_ok=True)
    assert fetch.get(archive, folder, mirror, recorded, disk=10**8) is None
    return folder / archive.name


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(download, "sleep", waited.append)
    return waited


def test_a_download_that_breaks_off_goes_on(server, waits, tmp_path, capsys):
    server.files["/a.tgz"] = BODY
    server.break_after = [300_000, 0, 0, 300_000]
    path = get(archive_of(), tmp_path, server.url + "/", {})
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
        get(archive_of(), tmp_path, server.url, {})
    server.break_after = []
    server.requests.clear()
    assert get(archive_of(), tmp_path, server.url, {}).read_bytes() == BODY
    assert server.requests == [("/a.tgz", "bytes=1000-")]


def test_a_part_that_was_whole_is_taken(server, waits, tmp_path):
    server.files["/a.tgz"] = BODY
    (tmp_path / "a.tgz.part").write_bytes(BODY)
    assert get(archive_of(), tmp_path, server.url, {}).read_bytes() == BODY


@pytest.mark.parametrize("why", ["no ranges", "another version"])
def test_a_download_starts_anew_where_it_cannot_go_on(why, server, waits, tmp_path):
    server.files["/a.tgz"] = BODY
    server.break_after = [1000] + [0] * 5
    with pytest.raises(fetch.Unreachable):
        get(archive_of(), tmp_path, server.url, {})
    server.break_after = []
    server.ranges = why != "no ranges"
    if why == "another version":
        server.files["/a.tgz"] = OTHER
    fetched = get(archive_of(), tmp_path, server.url, {})
    assert fetched.read_bytes() == server.files["/a.tgz"]


def test_a_dead_link_is_named_with_what_to_do(server, waits, tmp_path):
    with pytest.raises(fetch.Unreachable) as error:
        get(archive_of(), tmp_path, server.url, {})
    assert f"a.tgz cannot be had ({server.url}/a.tgz: HTTP 404 Not Found)" in str(error.value)
    assert "--mirror URL_OR_FOLDER" in str(error.value)
    assert waits == []
    # Nothing listens there: that is tried again, in vain.
    with pytest.raises(fetch.Unreachable, match="refused"):
        get(archive_of(), tmp_path, None, {})
    assert waits == list(download.WAITS)


def test_the_next_address_is_tried(server, tmp_path):
    server.files["/b/a.tgz"] = BODY
    archive = fetch.Archive("a.tgz", (f"{server.url}/dead/a.tgz", f"{server.url}/b/a.tgz"))
    assert get(archive, tmp_path, None, {}).read_bytes() == BODY


def test_a_web_page_is_no_archive(server, tmp_path):
    server.files["/a.tgz"] = b"<html>Too large to scan for viruses</html>"
    with pytest.raises(fetch.Unreachable, match="no archive but perhaps a web page"):
        get(archive_of(), tmp_path, server.url, {})
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
            get(archive, folder, str(tmp_path / "mirror"), recorded)
            continue
        wrong = rf"its (SHA256|MD5) is {right}.*{value}"
        with pytest.raises(fetch.Unreachable, match=wrong):
            get(archive, folder, str(tmp_path / "mirror"), recorded)
        assert list(folder.iterdir()) == []
        # One that somebody has put there stays.
        shutil.copy(tmp_path / "mirror/a.tgz", folder)
        with pytest.raises(ValueError, match=wrong + "; delete"):
            get(archive, folder, str(tmp_path / "mirror"), recorded)
        assert (folder / "a.tgz").exists()


def test_a_mirror_folder_without_the_archive_is_named(tmp_path):
    with pytest.raises(fetch.Unreachable, match=rf"{tmp_path}/a\.tgz: there is no such file"):
        get(archive_of(), tmp_path / "x", str(tmp_path), {})


def test_the_first_download_is_recorded_and_checked_afterwards(tmp_path):
    catalogue = tmp_path / "own.toml"
    catalogue.write_text('[c]\ndisk = 10_000_000\n[[c.archives]]\nname = "a.tgz"\nurls = []\n')
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
