"""The data scripts as they are run."""

import re
import shutil

import fetch
import pytest
from data_scripts import LANGUAGES, prepare, small_iwslt_archive, wmt_prepared, wmt_sources

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


@pytest.mark.full
def test_wmt16_both_ways_as_run(tmp_path):
    mirror = tmp_path / "mirror"
    wmt_sources(mirror)
    wmt_prepared(mirror / "wmt16_en_de.tar.gz")
    known = re.sub(r"(?m)^(sha256|md5|bytes) = .*\n", "", fetch.CATALOGUE.read_text())
    (tmp_path / "own.toml").write_text(known.replace("_000_000_000", "_000_000"))
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
