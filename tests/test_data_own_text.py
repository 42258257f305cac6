"""Text of one's own, drawn and binarised."""

import lzma
from pathlib import Path

import lines
import pytest
import sample_lines
from data_scripts import LANGUAGES, REPO, prepare


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
