"""Small archives named like the official ones, and the data scripts as they are run."""

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import iwslt14_text
import wmt16_text

REPO = Path(__file__).parents[1]
SCRIPTS = REPO / "data-bin-scripts"
LANGUAGES = ("de", "en")


def pack(path: Path, files: dict[str, str]) -> Path:
    path.write_bytes(packed({name: text.encode() for name, text in files.items()}))
    return path


def random_archive(size: int, seed: int = 0) -> bytes:
    """A .tar.gz of about so many bytes, with a file in it that cannot be compressed."""
    # Stored as it is, so that two of them have one size.
    return packed({"a/b": random.Random(seed).randbytes(size)}, level=0)


def packed(files: dict[str, bytes], level: int = 9) -> bytes:
    """A .tar.gz with these files in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), level, mtime=0)


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


def wmt_prepared(path: Path) -> Path:
    files = {"bpe.32000": "#version: 0.2\n", "newstest2013.en": "not this\n"}
    for part, name in wmt16_text.PREPARED.items():
        for language in LANGUAGES:
            files[name.format(language)] = f"{part} {language}@@ s\n" * 3
    return pack(path, files)


def prepare(script: str, *arguments: object, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=cwd
    )
