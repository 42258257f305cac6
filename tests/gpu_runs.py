"""Checks that start training processes: groups and workers that share a GPU.

Each takes a device and sizes, so that the tests run it on the CPU in small.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ports import free_port
from torch import Tensor

from fairseq_codistill.plain import allowing

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

WATCH = Path(__file__).parent / "gpu_watch"
TRAIN = [sys.executable, "-m", "fairseq_cli.train"]
VISION = [sys.executable, "-m", "fairseq_codistill.vision"]
WORDS = 40

# One and the same for fairseq-train and for fairseq-hydra-train.
MODEL = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_embed_dim": 64,
    "decoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "decoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
}
# Half precision as users ask for it.  A small scale of the loss doubles until gradients overflow;
# fairseq gives AMP no such window, so it begins with a large one.
PRECISIONS = {
    "float32": [],
    "fp16": ["--fp16", "--fp16-init-scale", "4", "--fp16-scale-window", "1"],
    "memory-efficient-fp16": [
        *["--memory-efficient-fp16", "--fp16-init-scale", "4", "--fp16-scale-window", "1"]
    ],
    "amp": ["--amp", "--fp16-init-scale", str(2**18)],
    "bf16": [],
}
OVERFLOW = re.compile(r"gradient overflow detected|AMP: overflow detected")
_REASON = re.compile(r"codistill: error|\w*(Error|Exception)\b")
# What parameters are in.
DTYPES = {"fp16": "float16", "memory-efficient-fp16": "float16", "bf16": "bfloat16"}
# Seconds that a group may have stood still over the exchange in all updates but the first.
STALL = 3.0


def write_corpus(folder: Path, pairs: int = 600) -> Path:
    """Write a corpus of made-up words and their translations; return the binarised directory."""
    rng = random.Random(7)
    text = folder / "text"
    text.mkdir(parents=True)
    for split, count in (("train", pairs), ("valid", 40)):
        sentences = [rng.choices(range(WORDS), k=rng.randint(3, 9)) for _ in range(count)]
        for side, letter in (("de", "d"), ("en", "e")):
            lines = "".join(" ".join(f"{letter}{w}" for w in s) + "\n" for s in sentences)
            (text / f"{split}.{side}").write_text(lines)
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "-s", "de", "-t", "en"]
    command += ["--joined-dictionary", "--workers", "1", "--destdir", str(folder / "bin")]
    for split in ("train", "valid"):
        command += [f"--{split}pref", str(text / split)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"fairseq_cli.preprocess: {done.stderr[-1000:]}"
    return folder / "bin"


def environment(device: torch.device, sharing: int = 1, **more: str) -> dict[str, str]:
    """Return the environment of what is started: a GPU, named once for each who shares it."""
    env = {name: v for name, v in os.environ.items() if not name.startswith("CODISTILL_")}
    env |= {"OMP_NUM_THREADS": "2" if device.type == "cuda" else "1", **more}
    if device.type == "cuda":
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        env["CUDA_VISIBLE_DEVICES"] = ",".join([first] * sharing)
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def run(command: Sequence[str], env: dict[str, str], work: Path) -> None:
    """Run a command to its end in a directory.

    Raises:
        AssertionError: with what it and the groups have said, if it fails.
    """
    with (work / "output.txt").open("a") as output:
        process = subprocess.Popen(command, env=env, cwd=work, stdout=output, stderr=output)
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                # launch ends its groups on SIGTERM.
                process.terminate()
                process.wait(timeout=10)
    if status != 0:
        logs = [*sorted(work.glob("out/group-*/log.txt")), work / "output.txt"]
        print("".join(f"== {log}\n{_tail(log)}\n" for log in logs))
        raise AssertionError(f"status {status}: {_reason(logs)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def _reason(logs: Sequence[Path]) -> str:
    """Return the last line of a log that looks like the reason for an end."""
    for log in logs:
        lines = [line for line in _tail(log).splitlines() if line.strip()]
        found = [
            line for line in lines if re.match(r"codistill: error|\w*(Error|Exception)\b", line)
        ]
        if found:
            return found[-1][:300]
    return "the log says why"


def lines(log: Path, tag: str = "train_inner") -> list[dict[str, float]]:
    """Return the JSON lines that were logged under a tag, numbers as floats."""
    text = log.read_text(errors="replace")
    found = re.findall(rf"(?:\| {tag} \| |\[{tag}\]\[INFO\] - )(\{{.*\}})$", text, re.M)
    return [
        {
            key.removeprefix(f"{tag}_"): float(value)
            for key, value in json.loads(line).items()
            if value is not None
        }
        for line in found
    ]


def watched(path: Path) -> list[dict[str, Any]]:
    """Return what ``gpu_watch`` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- two groups that share a GPU ---------------------------------------------------------------


def launch(
    device: torch.device,
    work: Path,
    precision: str = "float32",
    updates: int = 20,
    interval: int = 5,
    corpus: Path | None = None,
) -> dict[str, Any]:
    """Train two groups under launch on one GPU, in lockstep, so that peers are live throughout."""
    corpus = corpus or write_corpus(work / "corpus")
    watch = work / "watch"
    command = [
        *[sys.executable, "-m", "fairseq_codistill", "launch", "--groups", "2"],
        *["--out", str(work / "out"), "--max-restarts", "0", "--"],
        *_command(corpus, work, precision, updates, interval, device),
    ]
    run(command, environment(device, sharing=2, GPU_WATCH=str(watch)), work)
    found: dict[str, Any] = {"precision": precision}
    for group in (0, 1):
        log = work / "out" / f"group-{group}" / "log.txt"
        found[f"group {group}"] = _group(
            log, watched(Path(f"{watch}-{group}-0")), device, precision
        )
        made = lines(log)[-1]["num_updates"]
        assert made == updates, f"group {group} made {made:g} of {updates} updates"
    groups = [found["group 0"], found["group 1"]]
    fall = ", ".join(f"{one['D'][0]:.3g} to {one['D'][1]:.3g}" for one in groups)
    stall = max(one["stall"] for one in groups)
    overflows = sum(one["overflows"] for one in groups)
    found["says"] = f"D from {fall}; stall {stall:.2f} s at most; {overflows} overflows"
    return found


def _command(
    corpus: Path, work: Path, precision: str, updates: int, interval: int, device: torch.device
) -> list[str]:
    """Return what trains: fairseq-train, or for bf16, which it takes for a TPU's, its other one."""
    if precision == "bf16":
        return _hydra_command(corpus, work, updates, interval, device)
    model = [part for name, value in MODEL.items() for part in (_flag(name), str(value))]
    cpu = [] if device.type == "cuda" else ["--cpu"]
    return [
        *[*TRAIN, str(corpus), "--user-dir", str(WATCH), *PRECISIONS[precision], *cpu],
        *["--task", "codistill_translation", "--criterion", "codistill_cross_entropy"],
        *["--arch", "transformer", *model, "--share-all-embeddings"],
        *["--optimizer", "adam", "--lr", "0.002", "--max-tokens", "1000", "--seed", "1"],
        *["--max-update", str(updates), "--log-interval", "1", "--log-format", "json"],
        *["--no-epoch-checkpoints", "--num-workers", "0", "--data-buffer-size", "0"],
        *["--codistill-mode", "lockstep", "--codistill-interval", str(interval)],
        *["--codistill-timeout", "60", "--codistill-alpha", "5"],
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _hydra_command(
    corpus: Path, work: Path, updates: int, interval: int, device: torch.device
) -> list[str]:
    config = {
        "common": {
            **{"seed": 1, "bf16": True, "log_interval": 1, "log_format": "json"},
            **{"user_dir": str(WATCH), "cpu": device.type != "cuda"},
        },
        "checkpoint": {"no_epoch_checkpoints": True},
        "task": {
            **{"_name": "codistill_translation", "codistill_mode": "lockstep"},
            **{"codistill_interval": interval, "codistill_timeout": 60.0, "codistill_alpha": 5.0},
        },
        "criterion": {"_name": "codistill_cross_entropy"},
        "dataset": {"max_tokens": 1000, "num_workers": 0, "data_buffer_size": 0},
        "optimization": {"max_update": updates, "lr": [0.002]},
        "optimizer": {"_name": "adam"},
        "lr_scheduler": {"_name": "fixed"},
        "model": {"_name": "transformer_iwslt_de_en", "share_all_embeddings": True, **MODEL},
    }
    folder = work / "conf"
    folder.mkdir(exist_ok=True)
    # JSON is YAML too.
    (folder / "gpu.yaml").write_text(json.dumps(config))
    return [
        *[sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", str(folder)],
        *["--config-name", "gpu", f"++task.data={corpus}"],
    ]


def _group(
    log: Path, watch: Sequence[dict[str, Any]], device: torch.device, precision: str
) -> dict[str, Any]:
    """Check one group's log, and where its tensors were; return what is worth keeping."""
    place = f"{device.type} {DTYPES.get(precision, 'float32')}"
    for line in watch:
        assert line["batch"] == [f"{device.type} int64"], line
        assert line["parameters"] == [place], line
        assert line["gradients"] == [place], line
        assert line["peers"] == 1, line
        assert line["of peers"] == [place], line
    logged = lines(log)
    assert {line["codistill_peers"] for line in logged} == {1.0}, "not all updates had a peer"
    distance = [line["codistill_loss"] for line in logged]
    # Its first and last values are those of single batches.
    some = max(1, len(distance) // 5)
    first, last = (sum(part) / len(part) for part in (distance[:some], distance[-some:]))
    assert last < first, f"D did not fall: {first:.3g}, then {last:.3g}"
    stall = sum(line["codistill_stall"] for line in logged[1:])
    assert stall < STALL, f"the group stood still for {stall:.2f} s"
    overflows = len(OVERFLOW.findall(log.read_text(errors="replace")))
    expected = precision in ("fp16", "memory-efficient-fp16", "amp")
    assert (overflows > 0) == expected, f"{overflows} overflows in {precision}"
    assert len(watch) >= len(logged), f"{len(watch)} batches for {len(logged)} updates"
    return {"D": [first, last], "stall": stall, "overflows": overflows, "batches": len(watch)}


# --- two workers of a group -------------------------------------------------------------------


def workers(
    device: torch.device,
    work: Path,
    backends: Sequence[str] = ("legacy_ddp", "pytorch_ddp"),
    updates: int = 10,
    corpus: Path | None = None,
) -> dict[str, Any]:
    """Train a group of two workers over gloo on one GPU with each backend; compare the models."""
    corpus = corpus or write_corpus(work / "corpus")
    weights: dict[str, dict[str, Tensor]] = {}
    for backend in backends:
        weights[backend] = _pair(device, work / backend, corpus, updates, backend, "gloo")
    says = f"2 workers over gloo with {' and '.join(backends)}"
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        weights["nccl"] = _pair(device, work / "nccl", corpus, updates, backends[-1], "nccl")
        says += ", and over NCCL on two GPUs"
    first = weights[backends[0]]
    found = {}
    for name, other in weights.items():
        found[name] = _distance(other, first)
        assert found[name] <= 1e-4, f"{name} is {found[name]:.1e} away from {backends[0]}"
    return {"says": f"{says}; at most {max(found.values()):.0e} apart", "apart": found}


def _pair(
    device: torch.device, work: Path, corpus: Path, updates: int, backend: str, collectives: str
) -> dict[str, Tensor]:
    """Train two workers beside a snapshot of another group; return the model that they end with."""
    work.mkdir()
    exchange, saves = work / "exchange", work / "saves"
    _publish(corpus, exchange)
    port, processes = free_port(), []
    for rank in (0, 1):
        model = [part for name, value in MODEL.items() for part in (_flag(name), str(value))]
        local = rank if collectives == "nccl" else 0
        command = [
            *[*TRAIN, str(corpus), "--user-dir", str(WATCH), "--ddp-backend", backend],
            *["--task", "codistill_translation", "--criterion", "codistill_cross_entropy"],
            *["--arch", "transformer", *model, "--share-all-embeddings", "--seed", "1"],
            *["--optimizer", "sgd", "--lr", "0.5", "--max-tokens", "300", "--log-interval", "1"],
            *["--max-update", str(updates), "--log-format", "json", "--no-epoch-checkpoints"],
            *["--num-workers", "0", "--data-buffer-size", "0", "--save-dir", str(saves)],
            *["--codistill-mode", "lockstep", "--codistill-interval", "1000"],
            *["--codistill-snapshot-dtype", "float32", "--codistill-timeout", "60"],
            *["--codistill-dir", str(exchange), "--codistill-num-groups", "2"],
            *["--distributed-world-size", "2", "--distributed-rank", str(rank)],
            *["--distributed-init-method", f"tcp://localhost:{port}"],
            *["--distributed-backend", collectives, "--distributed-no-spawn"],
            *["--device-id", str(local), *([] if device.type == "cuda" else ["--cpu"])],
        ]
        env = environment(device, GPU_WATCH=str(work / "watch"), GPU_RANK=str(rank))
        if collectives == "nccl":
            env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
        with (work / f"rank-{rank}.txt").open("w") as output:
            processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
    _wait(processes, [work / f"rank-{rank}.txt" for rank in (0, 1)], backend)
    for rank in (0, 1):
        for line in watched(work / f"watch-0-{rank}"):
            assert line["parameters"] == [f"{device.type} float32"], line
            assert line["peers"] == 1, line
            assert line["of peers"] == [f"{device.type} float32"], line
    with allowing([argparse.Namespace]):
        path = saves / "checkpoint_last.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
    model_state: dict[str, Tensor] = state["model"]
    return model_state


def _wait(processes: Sequence[subprocess.Popen], logs: Sequence[Path], name: str) -> None:
    """Wait for all workers, or for one that fails: the others would wait for it for long."""
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    failed = [process.returncode for process in processes if process.returncode != 0]
    if failed:
        print("".join(f"== {log}\n{_tail(log)}\n" for log in logs))
        raise AssertionError(f"{name}: a worker ended with {failed[0]}: {_reason(logs)}")


def _publish(corpus: Path, exchange: Path) -> None:
    """Publish a model as group 1's of update 0."""
    import steps

    device = torch.device("cpu")
    flags = f"{steps.PLAIN} --max-tokens 300"
    side = steps.Side(corpus, "tiny", flags, device, torch.float32)
    exchange.mkdir()
    side.publish(exchange, 1, update=0)


def _distance(weights: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return ||w - ref|| / ||ref|| over all parameters."""
    assert weights.keys() == reference.keys()
    off = sum((weights[k].double() - reference[k].double()).square().sum() for k in reference)
    norm = sum(reference[k].double().square().sum() for k in reference)
    return float((torch.as_tensor(off) / norm).sqrt())


# --- images --------------------------------------------------------------------------------------


# No start of a run would have this scale; it doubles after 2,000 updates without an overflow.
SCALER = {"scale": 512.0, "_growth_tracker": 1995}
# After each of ten further updates.
SCALES = [512.0] * 4 + [1024.0] * 6


def write_images(folder: Path, each: int, side: int) -> Path:
    """Write images of three classes, each of its colour, with noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", each), ("val", 8)):
        for name, colour in (("ape", 70), ("bee", 130), ("cat", 190)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.normal(colour, 40, size=(side, side, 3))
                pixels = np.clip(noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number:03d}.png")
    return folder


def images(
    device: torch.device,
    work: Path,
    compile: bool = True,
    updates: int = 12,
    each: int = 64,
    side: int = 32,
    workers: int = 2,
) -> dict[str, Any]:
    """Train two groups on images, channels last and compiled; resume one of them.

    In float16, or on the CPU, where there is none for images, in bfloat16.
    """
    amp = "fp16" if device.type == "cuda" else "bf16"
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    compiled = compile and compiler is not None
    data = write_images(work / "images", each, side)
    flags = [
        *["--data", str(data), "--arch", "resnet8_cifar", "--width", "16"],
        *["--image-size", str(side), "--augmentation", "cifar", "--batch-size", "16"],
        *["--epochs", "40", "--lr", "0.05", "--log-interval", "1", "--num-workers", str(workers)],
        *["--amp", amp, "--channels-last", "--codistill-interval", "3"],
        *["--codistill-mode", "lockstep", "--codistill-timeout", "100"],
        *(["--compile"] if compiled else []),
        *([] if device.type == "cuda" else ["--cpu"]),
    ]
    command = [
        *[sys.executable, "-m", "fairseq_codistill", "launch", "--groups", "2"],
        *["--out", str(work / "out"), "--max-restarts", "0", "--"],
        *[*VISION, *flags, "--max-update", str(updates)],
    ]
    run(command, environment(device, sharing=2), work)
    for group in (0, 1):
        logged = lines(work / "out" / f"group-{group}" / "log.txt")
        assert logged[-1]["num_updates"] == updates, logged[-1]
        assert logged[-1]["codistill_peers"] == 1, logged[-1]
    resumed = _resume(work, flags, updates, device)
    says = f"{amp}, channels last, {'compiled' if compiled else 'not compiled'}; {resumed}"
    if compile and not compiled:
        says += " (no C compiler was found for torch.compile)"
    return {"says": says, "compiled": compiled}


def _resume(work: Path, flags: Sequence[str], updates: int, device: torch.device) -> str:
    """Give group 0 a scale of the loss of its own, and let it go on; return what was seen."""
    saves = work / "out" / "group-0"
    path = saves / "checkpoint_last.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert state["update"] == updates, state["update"]
    if device.type == "cuda":
        assert state["scaler"], "the checkpoint has no state of the scale"
        state["scaler"] |= SCALER
        torch.save(state, path)
    manifest = json.loads((work / "out" / "launch.json").read_text())
    command = [
        *[*VISION, *flags, "--max-update", str(updates + 10), "--save-dir", str(saves)],
        *["--codistill-run-id", manifest["run_id"], "--codistill-num-groups", "2"],
        *["--codistill-dir", str(work / "out" / "exchange"), "--codistill-group", "0"],
        # Alone: the other group has ended.
        *["--codistill-mode", "async"],
    ]
    (work / "output.txt").unlink()
    run(command, environment(device), work)
    logged = lines(work / "output.txt")
    made = [line["num_updates"] for line in logged]
    assert made == [updates + 1 + number for number in range(10)], made
    if device.type != "cuda":
        return "it goes on where it was"
    scales = [line["loss_scale"] for line in logged]
    assert scales == SCALES, f"the scale went on as {scales}, not as {SCALES}"
    return "the scale goes on from 512 and doubles when it is due"
