"""The programs that launch can start, and how each writes a setting on its command line.

A setting goes by its place in fairseq's configuration, for example ``checkpoint.save_dir``: that
is ``--save-dir DIR`` for ``fairseq-train`` and ``++checkpoint.save_dir=DIR`` for
``fairseq-hydra-train``.  The vision entry point has flags as ``fairseq-train`` does.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fairseq_codistill.errors import UserError

Value = str | int | bool
Settings = Mapping[str, Value]

# fairseq-train's flags that take no value, among those that launch has to understand.
SWITCHES = {
    "common.cpu",
    "distributed_training.distributed_no_spawn",
    "checkpoint.reset_optimizer",
    "checkpoint.reset_lr_scheduler",
    "checkpoint.reset_meters",
    "checkpoint.reset_dataloader",
}


@dataclass(frozen=True)
class Dialect(ABC):
    """A command line, split into what starts the program and what the program is told."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]

    # Whether each worker is a process that finds its place in the group in torchrun's variables;
    # fairseq finds it in its settings, and starts the workers on GPUs by itself.
    like_torchrun: ClassVar[bool] = False

    @abstractmethod
    def write(self, settings: Settings) -> list[str]:
        """Give the arguments that set ``settings``."""

    @abstractmethod
    def read(self, arguments: Sequence[str], key: str) -> str | None:
        """Give the value that ``arguments`` set ``key`` to, or None if they do not name it."""

    @abstractmethod
    def without(self, arguments: Sequence[str], keys: Iterable[str]) -> list[str]:
        """Give ``arguments`` without those that set any of ``keys``."""

    def refuse_several_jobs(self) -> None:
        """Make sure that the program trains one model, and not one after the other.

        Raises:
            UserError: if it would.
        """
        return

    def read_default(self, key: str) -> str | None:
        """Give the value that ``key`` has from a configuration file, or None."""
        return None

    def file(self) -> Path | None:
        """Return the configuration file that the command line names, or None."""
        return None

    def extra(self, group_folder: Path) -> list[str]:
        """Give further arguments that keep the files of one group out of the others' way."""
        return []

    def value(self, key: str) -> str | None:
        """Give the value of ``key`` in the user's command or the file it names, or None."""
        said = self.read(self.arguments, key)
        return self.read_default(key) if said is None else said

    def is_on(self, key: str) -> bool:
        """Tell whether the user's command switches ``key`` on."""
        return (self.value(key) or "").lower() in ("true", "1", "yes", "on")


class Flags(Dialect):
    """Flags of argparse, the last one wins, no abbreviations."""

    def write(self, settings: Settings) -> list[str]:
        """Give ``--flag VALUE`` for each setting, ``--flag`` alone for a switch that is on."""
        arguments = []
        for key, value in settings.items():
            if value is True:
                arguments.append(_flag(key))
            else:
                arguments += [_flag(key), str(value)]
        return arguments

    def read(self, arguments: Sequence[str], key: str) -> str | None:
        """Give the last value of the flag; ``"true"`` or ``"false"`` for a switch."""
        flag = _flag(key)
        found = None
        for position, argument in enumerate(arguments):
            if argument == flag:
                if key in SWITCHES:
                    found = "true"
                elif position + 1 < len(arguments):
                    found = arguments[position + 1]
            elif argument == _negated(flag) and key in SWITCHES:
                found = "false"
            elif argument.startswith(f"{flag}="):
                found = argument.partition("=")[2]
        return found

    def without(self, arguments: Sequence[str], keys: Iterable[str]) -> list[str]:
        """Leave out the flags of ``keys`` and their values."""
        takes_value = {}
        for key in keys:
            takes_value[_flag(key)] = key not in SWITCHES
            if key in SWITCHES:
                takes_value[_negated(_flag(key))] = False
        kept = []
        rest = iter(arguments)
        for argument in rest:
            if argument in takes_value:
                if takes_value[argument]:
                    next(rest, None)
            elif argument.partition("=")[0] not in takes_value:
                kept.append(argument)
        return kept


class FairseqTrain(Flags):
    """``fairseq-train``."""


class Vision(Flags):
    """``python -m fairseq_codistill.vision``: flags over a YAML file of the same names."""

    like_torchrun = True

    def file(self) -> Path | None:
        """Return the file that ``--config`` names."""
        name = self.read(self.arguments, "config")
        return None if name is None else Path(name)

    def read_default(self, key: str) -> str | None:
        """Look ``key`` up in the YAML file that ``--config`` names."""
        path = self.file()
        if path is None:
            return None
        from omegaconf import OmegaConf  # not needed for --help

        try:
            value = OmegaConf.load(path).get(key.rpartition(".")[2])
        except Exception:  # noqa: BLE001 - the program itself says what is wrong with the file
            return None
        return None if value is None else str(value)


class FairseqHydraTrain(Dialect):
    """``fairseq-hydra-train``: hydra's overrides over a YAML file, the last one wins."""

    def write(self, settings: Settings) -> list[str]:
        """Give ``++key=value`` for each setting: set it whether the YAML names it or not."""
        return [f"++{key}={_hydra_value(value)}" for key, value in settings.items()]

    def read(self, arguments: Sequence[str], key: str) -> str | None:
        """Give the value of the last override of ``key``."""
        values = [value for name, value in map(_override, arguments) if name == key]
        return values[-1] if values else None

    def without(self, arguments: Sequence[str], keys: Iterable[str]) -> list[str]:
        """Leave out the overrides of ``keys``."""
        left_out = set(keys)
        return [argument for argument in arguments if _override(argument)[0] not in left_out]

    def refuse_several_jobs(self) -> None:
        """Refuse hydra's multirun, whose jobs would train one after the other in one directory."""
        for argument in self.arguments:
            name = argument.partition("=")[0]
            # argparse takes the beginning of a flag for the flag.
            if name == "-m" or (len(name) > 3 and "--multirun".startswith(name)):
                raise UserError(f"{argument}: {_NO_MULTIRUN}")
        mode = self.value("hydra.mode")
        if mode is not None and mode.rpartition(".")[2].upper() == "MULTIRUN":
            raise UserError(f"hydra.mode={mode}: {_NO_MULTIRUN}")

    def file(self) -> Path | None:
        """Return the YAML file that ``--config-dir`` and ``--config-name`` name."""
        folder = self._option("--config-dir", "-cd") or self._option("--config-path", "-cp")
        name = self._option("--config-name", "-cn")
        if folder is None or name is None:
            return None
        return Path(folder) / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")

    def read_default(self, key: str) -> str | None:
        """Look ``key`` up in the YAML file that the command line names."""
        path = self.file()
        # hydra may know the name from elsewhere, and says so itself if it does not.
        if path is None or not path.is_file():
            return None
        from omegaconf import OmegaConf  # comes with hydra; not needed for --help

        value = OmegaConf.select(OmegaConf.load(path), key, throw_on_resolution_failure=False)
        return None if value is None else str(value)

    def extra(self, group_folder: Path) -> list[str]:
        """Keep hydra's own files in the group's folder, and relative paths as the user meant them.

        hydra changes to its run folder by default, one of each group: there a relative exchange
        would be another one for every group.
        """
        arguments = [f"hydra.run.dir={_hydra_value(str(group_folder / 'hydra'))}"]
        if self.read(self.arguments, "hydra.job.chdir") is None:
            arguments.append("hydra.job.chdir=False")
        return arguments

    def _option(self, *names: str) -> str | None:
        found = None
        for position, argument in enumerate(self.arguments):
            name, equals, value = argument.partition("=")
            if name in names:
                found = value if equals else next(iter(self.arguments[position + 1 :]), None)
        return found


_NO_MULTIRUN = (
    "launch cannot run a hydra multirun, whose jobs would go on from each other's checkpoints; "
    "launch each job by itself, with an --out of its own"
)

PROGRAMS: dict[str, type[Dialect]] = {
    "fairseq-train": FairseqTrain,
    "fairseq-hydra-train": FairseqHydraTrain,
}
MODULES: dict[str, type[Dialect]] = {
    "fairseq_cli.train": FairseqTrain,
    "fairseq_cli.hydra_train": FairseqHydraTrain,
    "fairseq_codistill.vision": Vision,
}


def recognise(command: Sequence[str]) -> Dialect:
    """Tell which program ``command`` starts.

    Raises:
        UserError: if there is none, or launch does not know it.
    """
    if not command:
        raise UserError("there is no command to launch; put it after `--`, e.g. -- fairseq-train")
    name = Path(command[0]).name
    if name in PROGRAMS:
        return PROGRAMS[name](tuple(command[:1]), tuple(command[1:]))
    if name.startswith("python") and "-m" in command:
        end = command.index("-m") + 2
        # What stands between the interpreter and -m must be the interpreter's own options.
        options = command[1 : end - 2]
        dialect = MODULES.get(command[end - 1]) if end <= len(command) else None
        if dialect is not None and all(option.startswith("-") for option in options):
            return dialect(tuple(command[:end]), tuple(command[end:]))
    known = ", ".join([*PROGRAMS, *(f"python -m {module}" for module in MODULES)])
    raise UserError(f"cannot launch {' '.join(command[:3])!r}; the command must be one of: {known}")


def _flag(key: str) -> str:
    return "--" + key.rpartition(".")[2].replace("_", "-")


def _negated(flag: str) -> str:
    """Give what switches a flag off: ``--no-cpu`` for ``--cpu``."""
    return "--no-" + flag.removeprefix("--")


def _override(argument: str) -> tuple[str | None, str]:
    match = re.fullmatch(r"\+{0,2}([\w.@/]+)=(.*)", argument, re.DOTALL)
    if match is None:
        return None, ""
    key, value = match.groups()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return key, value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _hydra_value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    # hydra's grammar gives a meaning to most other characters; within quotes only to these two.
    # A run id such as 12e4567890123456 would be a number to it.
    if re.fullmatch(r"[\w./:-]+", text) and not (isinstance(value, str) and _is_number(text)):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
