"""Settings from the command line, and from the file of a recipe under it."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fairseq_codistill.codistillation import CodistillationConfig, ConfigError
from fairseq_codistill.vision.settings import VisionConfig


def parse(arguments: Sequence[str]) -> VisionConfig:
    """Read the command line, over the file that ``--config`` names, and check what it says.

    Raises:
        ConfigError: if a setting is wrong, or the file is.
        SystemExit: with status 2, after argparse's message, if a flag is unknown.
    """
    parser = _parser()
    said = vars(parser.parse_args(arguments))
    file = said.pop("config", None)
    settings = {**_from_file(Path(file), parser), **said} if file is not None else said
    config = VisionConfig(**settings)
    config.check()
    return config.stretched()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_codistill.vision",
        description="Train an image classifier as one of n groups that codistil.",
        # What is not said keeps the file's value, or the default.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="settings by their names; flags beside it win"
    )
    kinds = typing.get_type_hints(VisionConfig)
    # The adapter's own first; the rest is what it shares with translation.
    every = dataclasses.fields(VisionConfig)
    shared = {one.name for one in dataclasses.fields(CodistillationConfig)}
    for one in sorted(every, key=lambda one: one.name in shared):
        _add(parser, one, kinds[one.name])
    return parser


def _add(parser: argparse.ArgumentParser, one: dataclasses.Field, kind: Any) -> None:
    flag = "--" + one.name.replace("_", "-")
    help = one.metadata["help"].replace("%", "%%")
    if one.default is not dataclasses.MISSING and one.default not in (None, "", False, True):
        help += f" (default: {one.default})"
    if one.default is True:
        help += " (default: on)"
    if one.name == "dry_run":
        parser.add_argument(flag, nargs="?", type=_count, const=0, metavar="WORKERS", help=help)
    elif kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help)
    else:
        parser.add_argument(flag, type=_reader(kind), metavar="X", help=help)


def _reader(kind: Any) -> Any:
    """Give what turns the text of a flag into a value."""
    (inner,) = {part for part in typing.get_args(kind) or (kind,) if part is not type(None)}
    if typing.get_origin(kind) is not list:
        return inner

    def read(text: str) -> list[Any]:
        return [inner(part) for part in text.split(",") if part]

    read.__name__ = f"list of {inner.__name__}"
    return read


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number


def _from_file(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a recipe; its values pass through the flags, so that both mean the same."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"--config {path} is not there; name a YAML file") from None
    except Exception as error:  # whatever the YAML library raises
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read ({reason}); correct it") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"--config {path} holds no settings; write lines as in `epochs: 90`")
    kinds = typing.get_type_hints(VisionConfig)
    values = {}
    for name, value in content.items():
        if name not in kinds or name == "dry_run":
            raise ConfigError(f"--config {path} sets {name}, which is no setting; see --help")
        try:
            values[name] = _value(kinds[name], value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"--config {path} sets {name} to {value!r}, which it cannot be; see --help"
            ) from None
    return values


def _value(kind: Any, value: Any) -> Any:
    if value is None or kind is bool:
        fits = isinstance(value, bool) if kind is bool else type(None) in typing.get_args(kind)
        if not fits:
            raise TypeError
        return value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return _reader(kind)(str(value))
