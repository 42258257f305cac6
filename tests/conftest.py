"""Fixtures shared by the tests: a small corpus, binarised once."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

# What nohup, or a shell's &, had the tests ignore is not theirs to pass on to what they start.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

NOUNS = {"Hund": "dog", "Mann": "man", "Baum": "tree", "Ball": "ball", "Weg": "path", "Tag": "day"}
VERBS = {"sieht": "sees", "findet": "finds", "kennt": "knows", "nimmt": "takes"}
ADJECTIVES = {"gute": "good", "alte": "old", "rote": "red", "kleine": "small", "neue": "new"}
ADVERBS = {"heute": "today", "oft": "often", "nie": "never", "gern": "gladly"}


def sentence(rng: random.Random) -> tuple[str, str]:
    """A sentence of 3 to 9 words and its translation."""
    german, english = [], []

    def say(words):
        word = rng.choice(sorted(words))
        german.append(word)
        english.append(words[word])

    for part in range(rng.choice([1, 2])):
        if part:
            german.append("und")
            english.append("and")
        if rng.random() < 0.5:
            say(ADJECTIVES)
        say(NOUNS)
        say(VERBS)
        say(ADVERBS if rng.random() < 0.3 else NOUNS)
    return " ".join(german), " ".join(english)


def write_corpus(folder: Path, pairs: int = 900, extra_words: tuple[str, ...] = ()) -> Path:
    """Write and binarise a corpus; gives the folder for fairseq."""
    rng = random.Random(7)
    folder.mkdir(parents=True)
    for split, count in {"train": pairs, "valid": 60, "test": 200}.items():
        lines = [sentence(rng) for _ in range(count)]
        if split == "train":
            lines += [(word, word) for word in extra_words]
        for side, lang in enumerate(("de", "en")):
            text = "".join(pair[side] + "\n" for pair in lines)
            (folder / f"{split}.{lang}").write_text(text)
    command = ["fairseq-preprocess", "-s", "de", "-t", "en", "--joined-dictionary"]
    for split in ("train", "valid", "test"):
        command += [f"--{split}pref", str(folder / split)]
    command += ["--destdir", str(folder / "bin"), "--workers", "1"]
    subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        check=True,
        capture_output=True,
    )
    return folder / "bin"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A made-up German-English corpus of 900 pairs with a vocabulary of some 50 words."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "plain")


@pytest.fixture(scope="session")
def other_vocabulary(tmp_path_factory) -> Path:
    """The same corpus with one more word in its dictionary."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "other", extra_words=("Zoo",))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    long = [item for item in items if "full" in item.keywords]
    items[:] = [item for item in items if "full" not in item.keywords]
    config.hook.pytest_deselected(items=long)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running
