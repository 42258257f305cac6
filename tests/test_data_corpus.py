"""The real corpus: byte for byte what fairseq's own script gave.

Skipped where ../shared/data/iwslt14-de-en is not there.
"""

import functools
import re
import time
from pathlib import Path

import iwslt14_text
import lines
import moses_text
import pytest
import sacremoses
import subwords
from data_scripts import (
    LANGUAGES,
    REPO,
    iwslt_archive,
    prepare,
)

SHARED = REPO.parent / "shared/data/iwslt14-de-en"

needs_corpus = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the IWSLT'14 data is not beside the project in ../shared/data"
)


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
