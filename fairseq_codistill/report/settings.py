"""The settings that a log begins with, and in which of them two runs differ."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence

Settings = Mapping[str, str]

# Two runs that differ in these alone train the same thing twice: the seed, names and places.
_ASIDE = {
    *("seed", "save_dir", "restore_file", "log_file", "log_format", "log_interval"),
    *("tensorboard_logdir", "wandb_project", "aim_repo", "aim_run_hash", "azureml_logging"),
    *("no_progress_bar", "user_dir", "plasma_path", "hydra_config", "results_path"),
    *("codistill_dir", "codistill_group", "codistill_run_id"),
    *("distributed_port", "distributed_init_method", "distributed_rank", "device_id"),
    *("distributed_no_spawn", "reset_optimizer", "reset_lr_scheduler", "reset_meters"),
    *("reset_dataloader", "no_seed_provided", "num_workers", "data_buffer_size"),
    *("save_interval", "save_interval_updates", "keep_interval_updates", "keep_last_epochs"),
    *("keep_interval_updates_pattern", "keep_best_checkpoints", "no_save", "no_epoch_checkpoints"),
    *("no_last_checkpoints", "no_save_optimizer_state", "write_checkpoints_asynchronously"),
    *("max_tokens_valid", "batch_size_valid", "codistill_keep", "codistill_timeout"),
}
# Hydra's own logging, with the folder of the run in it.
_NOT_SETTINGS = {"job_logging_cfg"}
_NOTHING = {"", "None", "'None'", "False"}
# Flags that came later and whose default is something: logs of before do not have them.
_LATER = {
    "codistill_head": "auto",
    "codistill_every": "1",
    "codistill_peer_dtype": "student",
    "codistill_topology": "all",
}


def parse(text: str) -> Settings:
    """Give the settings in a log's line by their names; none if the line cannot be read.

    The line is a dictionary as Python prints it, with ``Namespace(...)`` in it. It is taken apart
    and never evaluated.
    """
    try:
        with warnings.catch_warnings():
            # Of escapes in strings, which are nobody's here to mend.
            warnings.simplefilter("ignore")
            return _taken_apart(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _taken_apart(tree: ast.expr) -> Settings:
    found: dict[str, str] = {}
    parts = dict(_parts(tree))
    # What fairseq-train prints of the model repeats all the rest: the first of a name counts.
    for part in sorted(parts.keys() - _NOT_SETTINGS, key=lambda name: (name == "model", name)):
        for name, value in _leaves(part, parts[part]):
            found.setdefault(name, value)
    return found


def difference(settings: Sequence[Settings]) -> list[str]:
    """Give the names of the settings in which runs differ, other than the seed and places."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [
        name
        for name in names
        if name not in _ASIDE and len({_value(name, one) for one in settings}) > 1
    ]


def alike(one: Settings, other: Settings) -> bool:
    """Tell whether two runs are known to differ in nothing but their seed."""
    return bool(one) and bool(other) and not difference([one, other])


def _value(name: str, settings: Settings) -> str:
    # A version of this plugin that did not know a flag yet did what the flag's default does now.
    later = _LATER.get(name) if "codistill_interval" in settings else None
    return _plain(settings.get(name, later or "None"))


def _parts(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value), value


def _leaves(name: str, node: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Dict):
        for key, value in _parts(node):
            # {'criterion': {'_name': 'cross_entropy'}} is a setting named criterion.
            yield from _leaves(name if key == "_name" else key, value)
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            yield from _leaves(keyword.arg or "", keyword.value)
    elif name:
        yield name, ast.unparse(node)


def _plain(value: str) -> str:
    """Give one text for what is one value: 4000 and '4000', 0 and 0.0, None and False."""
    if value in _NOTHING:
        return ""
    text = value.strip("'\"")
    try:
        return repr(float(text))
    except ValueError:
        return text
