"""What a command line and the configuration file that it names say: settings by their names.

A name is a flag without its dashes, or a key of hydra's.  Values are as they are written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_codistill.launch.dialects import SWITCHES, Dialect, FairseqHydraTrain, Vision
from fairseq_codistill.records import printable, read_file

# Positional arguments: fairseq's directory of data.
POSITIONAL = "data"
ON, OFF = "true", "false"
# A longer value of a file is known by its digest.
LONGEST_VALUE = 1000
# Other spellings of fairseq's flags.
_SPELLINGS = {
    "a": "arch",
    "s": "source-lang",
    "t": "target-lang",
    "max-sentences": "batch-size",
    "max-sentences-valid": "batch-size-valid",
    "nval": "max-valid-steps",
    "combine-val": "combine-valid-subsets",
    "save-async": "write-checkpoints-asynchronously",
}
# Flags of fairseq-train without a value.  Of others that is found out, as far as it can be.
BARE = frozenset(
    {key.rpartition(".")[2].replace("_", "-") for key in SWITCHES}
    | set(
        "adaptive-input amp azureml-logging bf16 broadcast-buffers checkpoint-activations "
        "codistill-fused-ce codistill-peer-dropout combine-valid-subsets cross-self-attention "
        "debug-param-names decoder-learned-pos decoder-normalize-before disable-validation "
        "ema-fp32 "
        "encoder-bidirectional encoder-learned-pos encoder-normalize-before eval-bleu "
        "eval-bleu-print-samples eval-tokenized-bleu fast-stat-sync find-unused-parameters "
        "fix-batches-to-gpus fp16 fp16-adam-stats fp16-no-flatten-grads "
        "gradient-as-bucket-view grouped-shuffling ignore-unused-valid-subsets "
        "layernorm-embedding load-alignments load-checkpoint-on-all-dp-ranks "
        "maximize-best-checkpoint-metric "
        "memory-efficient-bf16 memory-efficient-fp16 merge-src-tgt-embed no-cross-attention "
        "no-decoder-final-norm no-epoch-checkpoints no-last-checkpoints no-progress-bar "
        "no-save no-save-optimizer-state no-scale-embedding no-token-positional-embeddings "
        "offload-activations on-cpu-convert-precision profile reset-logging sentence-avg "
        "share-all-embeddings share-decoder-embeddings share-decoder-input-output-embed "
        "skip-invalid-size-inputs-valid-test skip-remainder-batch store-ema suppress-crashes "
        "tie-adaptive-proj tie-adaptive-weights truncate-source update-ordered-indices-seed "
        "use-bmuf use-old-adam use-plasma-view write-checkpoints-asynchronously".split()
    )
)
HYDRA_FLAGS = {
    "-cd": "config-dir",
    "--config-dir": "config-dir",
    "-cp": "config-path",
    "--config-path": "config-path",
    "-cn": "config-name",
    "--config-name": "config-name",
}


def command_line(dialect: Dialect, bare: frozenset[str]) -> dict[str, str]:
    """Return the settings of a command line by their names; of several values the last."""
    if isinstance(dialect, FairseqHydraTrain):
        return _overrides(dialect.arguments)
    found: dict[str, str] = {}
    positional: list[str] = []
    words = list(dialect.arguments)
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            positional.append(word)
            continue
        name, equals, value = _split(word)
        if not equals:
            takes = name not in bare and bool(words) and not _is_flag(words[0])
            value = words.pop(0) if takes else ON
        if isinstance(dialect, Vision) and name.startswith("no-"):
            name, value = name.removeprefix("no-"), OFF
        found[name] = value
    if positional:
        found[POSITIONAL] = " ".join(positional)
    return found


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    found = {}
    words = list(arguments)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in HYDRA_FLAGS:
            found[HYDRA_FLAGS[name]] = value if equals or not words else words.pop(0)
            continue
        name = name.lstrip("+")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value if equals else ON
    return found


def bare_flags(dialects: Iterable[Dialect]) -> frozenset[str]:
    """Return the flags without a value: those known, and those that stand without one anywhere."""
    found = set(BARE)
    for dialect in dialects:
        if isinstance(dialect, Vision):
            # None of its arguments is positional: what follows a flag is its value.
            return frozenset()
        words = dialect.arguments
        for word, following in zip(words, [*words[1:], "--"], strict=True):
            name, equals, _ = _split(word)
            if _is_flag(word) and not equals and _is_flag(following):
                found.add(name)
    return frozenset(found)


def _is_flag(word: str) -> bool:
    # A negative number is a value.
    return re.match(r"--|-[A-Za-z]", word) is not None


def _split(word: str) -> tuple[str, str, str]:
    name, equals, value = word.partition("=")
    return plain(name), equals, value


def content_of(path: Path, sections: bool) -> dict[str, str] | None:
    """Return the settings of a YAML file, or None if it cannot be read."""
    content = _load(path)
    if content is None:
        return None
    if not sections:
        return {plain(_text(name)): _text(value) for name, value in content.items()}
    files = _composed(path.parent, content.get("defaults"))
    own = {name: value for name, value in content.items() if name != "defaults"}
    return {**files, **dict(_flat(own))}


def _load(path: Path) -> Mapping[Any, Any] | None:
    from omegaconf import OmegaConf  # not needed for --help

    try:
        # Not resolved: what it takes from the environment is nobody's business.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # noqa: BLE001 - the program itself says what is wrong with the file
        return None
    return content if isinstance(content, Mapping) else None


def _composed(folder: Path, defaults: Any) -> dict[str, str]:
    """Return the list of files that a file of hydra's is composed of, and digests of what they say.

    Where hydra puts their settings depends on a comment in each: they are compared as a whole.
    """
    if not isinstance(defaults, list):
        return {}
    found = {"defaults": _text(defaults)}
    for entry in defaults:
        pairs = entry.items() if isinstance(entry, Mapping) else [("", entry)]
        for group, name in pairs:
            # As in `override /model: big`.
            words = [word.strip("/") for word in str(group).split()]
            named = "/".join([*words[-1:], f"{str(name).removesuffix('.yaml')}.yaml"])
            # hydra may know it from elsewhere.
            if (folder / named).is_file():
                content = _load(folder / named)
                found[_text(named)] = (
                    digest_of(folder / named)
                    if content is None
                    else _digest(json.dumps(sorted(_flat(content))))
                )
    return found


def digest_of(path: Path) -> str:
    """Return the digest of a file, or why there is none."""
    try:
        return _digest(read_file(path.resolve()))
    except (OSError, ValueError) as error:
        return f"not readable ({printable(error)})"


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield _text(f"{prefix}{name}"), _text(value)


def _text(value: Any) -> str:
    """Return a value of a file as it would be written on the command line."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    if len(text) > LONGEST_VALUE:
        return _digest(text)
    return text


def _digest(content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return f"SHA-256 {hashlib.sha256(data).hexdigest()}"


def last_part(key: str) -> str:
    """Return the flag without dashes that a key of hydra's corresponds to."""
    return key.rpartition(".")[2].replace("_", "-")


def plain(name: str) -> str:
    """Return a name in the one spelling by which names are compared."""
    name = name.lstrip("-").replace("_", "-")
    return _SPELLINGS.get(name, name)
