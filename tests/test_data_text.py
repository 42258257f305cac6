"""The corpora's text, as Moses and fairseq's own scripts make it."""

import subprocess
import sys

import iwslt14_text
import lines
import moses_text
import pytest
import subwords
import unpack
import wmt16_text
from data_scripts import LANGUAGES, pack, small_iwslt_archive, wmt_prepared, wmt_sources


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


def test_wmt16_text_from_the_sources(tmp_path, capsys):
    wmt_sources(tmp_path / "archives")
    wmt16_text.main(["sources", str(tmp_path / "archives"), str(tmp_path / "text")])
    parts = {path.name: list(lines.read_lines(path)) for path in (tmp_path / "text").iterdir()}
    assert parts["train.en"] == [f"Sentence {n} isn &apos;t long ." for n in range(3)]
    assert parts["train.de"] == [f"Satz {n} ist nicht lang ." for n in range(3)]
    assert (parts["valid.en"], parts["valid.de"]) == (["Old news"], ["Alte Nachricht"])
    assert parts["test.de"] == ["Guten morning , U.S .", "Bye"]
    assert "train: 3 pairs (Google's archive has 4500966)" in capsys.readouterr().out


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
