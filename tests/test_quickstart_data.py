"""The quickstart's text: cleaning, pairing, splitting, pinned wheels; and the shell's stages."""

import hashlib
import importlib.util
import json
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parents[1]
SCRIPTS = REPO / "data-bin-scripts"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


catalogues = load(SCRIPTS / "prepare_catalogues.py")
table = load(REPO / "examples/quickstart_table.py")
Pair = catalogues.Pair


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "catalogue-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        de = {"config": {"a": "Das Gerät ist aus.", "only_de": "Nur hier."}, "n": 3}
        en = {"config": {"a": "The device is off.", "only_en": "Only here."}, "n": 3}
        archive.writestr("c/x/translations/de.json", json.dumps(de))
        archive.writestr("c/x/translations/en.json", json.dumps(en))
        archive.writestr("c/y/translations/de.json", json.dumps({"b": "Ohne Gegenstück"}))
        archive.writestr("c/z/brands/de.json", json.dumps({"b": "Keine Übersetzung"}))
        archive.writestr("c/z/brands/en.json", json.dumps({"b": "No translation"}))
    return path


def pin(wheel: Path) -> str:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"catalogue==1.0 \\\n    --hash=sha256:{digest}\n"


def corpus(size: int) -> list:
    words = "rot grün blau gelb weiß grau braun rosa lila schwarz".split()

    def spell(number: int) -> str:
        return " ".join(words[int(digit)] for digit in f"{number:04}")

    # Every third translation is shared by several sources.
    return [Pair(spell(i), "the " + spell(i // 3 if i % 3 else i)) for i in range(size)]


def test_strings_are_paired_by_their_path_of_keys(wheel):
    assert list(catalogues.read_pairs(wheel)) == [Pair("Das Gerät ist aus.", "The device is off.")]


def test_normalise_makes_plain_quotes_dashes_and_spaces():
    assert catalogues.normalise(" „So“\u00a0–  ‚gut‘ … u\u0308ber ") == "\"So\" - 'gut' ... über"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Schalte {entity_name} aus", "Turn off {entity_name}"),
        ("Siehe [%key:common::x%]", "See [%key:common::x%]"),
        ("%s wurde gelöscht", "%s was deleted"),
        ("%(name)s wurde gelöscht", "%(name)s was deleted"),
        ("Öffne https://x.org jetzt", "Open https://x.org now"),
        ("Das ist <b>fett</b> hier", "This is <b>bold</b> here"),
        ("Mit **OK** bestätigen", "Confirm with **OK**"),
        ("Erstens\n\nZweitens", "First\n\nSecond"),
        ("Chromecast Audio", "chromecast audio!"),
        ("100", "100 %"),
        ("Ja", "A translation that is far too long for so short a word"),
        ("wort " * 41, "word " * 41),
    ],
)
def test_clean_drops_what_is_no_sentence_pair(source, target):
    assert catalogues.clean(Pair(source, target)) is None


def test_clean_keeps_and_normalises_the_rest():
    pair = Pair("Ladezustand  in 50 % der Fälle", "State of charge in 50 % of cases")
    assert catalogues.clean(pair) == Pair("Ladezustand in 50 % der Fälle", pair.target)
    assert catalogues.clean(Pair("Blindleistung", "Reactive power"))


def test_deduplicate_keeps_one_pair_a_source_whatever_the_order():
    pairs = [
        Pair("Kanal 1 ist aus", "Channel 1 is off"),
        Pair("Kanal 2 ist aus.", "Channel 2 is off."),
        Pair("kanal ist aus", "The channel is off"),
        Pair("Kanal ist an", "Channel is on"),
    ]
    kept = catalogues.deduplicate(pairs)
    assert sorted(catalogues.comparable(pair.source) for pair in kept) == [
        "kanal ist an",
        "kanal ist aus",
    ]
    assert kept == catalogues.deduplicate(reversed(pairs))


def test_split_shares_no_sentence_on_either_side():
    pairs = catalogues.deduplicate(corpus(600))
    parts = catalogues.split(pairs, held_out=50)
    assert (len(parts.valid), len(parts.test)) == (50, 50)
    assert len(parts.train) > 300
    for side in (0, 1):
        seen = [{catalogues.comparable(pair[side]) for pair in part} for part in parts]
        assert len(set().union(*seen)) == sum(map(len, seen))


def test_split_holds_out_only_sentences_that_are_long_enough():
    pairs = [Pair(f"Wort {letter}", f"word {letter}") for letter in "abcdefgh"]
    parts = catalogues.split(catalogues.deduplicate(pairs), held_out=2)
    assert (len(parts.train), parts.valid, parts.test) == (8, [], [])


def test_split_moves_few_pairs_when_a_pair_is_added():
    before = catalogues.split(catalogues.deduplicate(corpus(600)), held_out=50)
    after = catalogues.split(catalogues.deduplicate(corpus(601)), held_out=50)
    assert len(set(before.test) & set(after.test)) >= 48


def test_main_writes_aligned_files(wheel, tmp_path):
    (tmp_path / "pinned.txt").write_text(pin(wheel))
    arguments = [str(wheel), "--pinned", str(tmp_path / "pinned.txt"), "--dest", str(tmp_path)]
    catalogues.main([*arguments, "--held-out", "0"])
    assert (tmp_path / "train.de").read_text(encoding="utf-8") == "Das Gerät ist aus.\n"
    assert (tmp_path / "train.en").read_text(encoding="utf-8") == "The device is off.\n"
    assert (tmp_path / "test.de").read_text() == ""


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_wheel_is_noticed_and_named(wheel, damage):
    pinned = catalogues.pinned_hashes(pin(wheel))
    catalogues.check_wheel(wheel, pinned)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-100] if damage == "truncated" else whole[:-1] + b"\x01")
    with pytest.raises(ValueError, match=f"{wheel.name} is broken or altered.*delete it") as error:
        catalogues.check_wheel(wheel, pinned)
    assert "\n" not in str(error.value)


def test_every_pinned_package_has_a_hash():
    requirements = (SCRIPTS / "catalogues.txt").read_text()
    assert len(catalogues.pinned_hashes(requirements)) == requirements.count("==") > 0


def run_stage(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    script = f"""
        set -euo pipefail
        LOGS={folder}
        source {SCRIPTS}/stages.sh
        work() {{ {command}; }}
        stage work {folder}/output "Working" work
        echo went on
    """
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_a_stage_is_done_once(tmp_path):
    command = f'echo x >> {tmp_path}/runs; touch "$1"'
    assert "went on" in run_stage(tmp_path, command).stdout
    assert "already there" in run_stage(tmp_path, command).stdout
    assert (tmp_path / "runs").read_text() == "x\n"


def test_a_failed_stage_is_named_shows_its_log_and_leaves_no_output(tmp_path):
    result = run_stage(tmp_path, 'touch "$1"; seq 100; false; echo not reached')
    assert result.returncode == 1
    assert "went on" not in result.stdout
    shown = result.stderr.splitlines()
    assert shown[1:16] == [str(number) for number in range(86, 101)]
    assert (
        f"the stage 'work' failed with status 1; the whole log is {tmp_path}/work.log" in shown[-1]
    )
    assert not (tmp_path / "output").exists()


def test_the_table_reads_what_fairseq_writes():
    log = (
        '2026-01-01 | INFO | train | {"epoch": 1, "train_nll_loss": "9"}\n'
        '2026-01-01 | INFO | valid | {"epoch": 1, "valid_nll_loss": "4.5"}\n'
        '2026-01-01 | INFO | valid | {"epoch": 2, "valid_nll_loss": "4.75"}\n'
    )
    assert table.valid_nlls(log) == [4.5, 4.75]
    output = (
        "S-1\tb\nT-1\tB\nH-1\t-0.5\tBe.\nD-1\t-0.5\tBe.\nP-1\t-1.0 -2.0\n"
        "S-0\ta\nT-0\tA\nH-0\t-0.5\t\nD-0\t-0.5\t\nP-0\t-3.0\nGenerate test\n"
    )
    assert table.by_sentence(output, table.HYPOTHESIS) == ["", "Be."]
    assert table.reference_nll(output) == 2.0


def test_the_table_notices_a_sentence_that_was_left_out():
    output = "H-0\t-0.5\tBe.\nH-2\t-0.5\tThe.\n"
    with pytest.raises(ValueError, match="left out sentence 1"):
        table.by_sentence(output, table.HYPOTHESIS)
