"""What is wrong with settings and data is said in one sentence, before anything is written."""

import shutil
import subprocess
import sys

import pytest
from harness import LOCKSTEP, environment
from vision_harness import CLASSES, TINY, files, launch_command, refused, write_images

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.exchange import Store, read_alive
from fairseq_codistill.vision.__main__ import main
from fairseq_codistill.vision.flags import parse


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "data", train=6, valid=2)


def no_train(data):
    shutil.rmtree(data / "train")


def no_validation(data):
    shutil.rmtree(data / "val")


def no_classes(data):
    shutil.rmtree(data / "val")
    (data / "val").mkdir()


def empty_class(data):
    shutil.rmtree(data / "train/bee")
    (data / "train/bee").mkdir()


def other_classes(data):
    shutil.rmtree(data / "val/cat")


def no_image(data):
    (data / "train/cat/003.png").write_text("This is not an image.")


def no_image_in_validation(data):
    (data / "val/cat/001.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "is no folder; name one with train/ and val or test/"),
        (no_train, "has no folder train; put the training images there"),
        (no_validation, "has no folder val or test; put the validation images into one"),
        (no_classes, "val has no folders of classes; make one for each class"),
        (empty_class, "the class 'bee' has no images in train; put some there, or remove"),
        (other_classes, "train has 3 classes and val 2, and 'cat' is in one of them only"),
        (no_image, "train/cat/003.png cannot be read (cannot identify image file); repair or"),
        (no_image_in_validation, "val/cat/001.png cannot be read"),
    ],
)
def test_data(data, tmp_path, capfd, spoil, says):
    spoil(data)
    said = refused(capfd, "--data", data, "--save-dir", tmp_path / "run")
    assert said.startswith("--data")
    assert says in said
    assert not (tmp_path / "run").exists()


def test_an_image_with_a_sound_beginning_stops_training_when_it_is_met(data, tmp_path, capfd):
    path = data / "train/ape/002.png"
    path.write_bytes(path.read_bytes()[:-100])
    said = refused(capfd, "--data", data, "--save-dir", tmp_path / "run")
    assert f"the image {path} cannot be read" in said
    assert files(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        # 18 images of training.
        ("--batch-size 19", "--batch-size 19 needs 19 images for an update (1 worker(s), "),
        ("--batch-size 5 --update-freq 4", "needs 20 images for an update"),
        ("--data-fraction 1/3", "--batch-size 8 needs 8 images for an update"),
        ("--data-fraction 3/2", "--data-fraction 3/2 is no part of a whole; give 1/4 or 0.25"),
        ("--arch vit_b_16", "--image-size 12 does not go with --arch vit_b_16 (Input shape "),
        ("--arch vit_b_16 --dry-run", "--image-size 12 does not go with --arch vit_b_16 (Input"),
        ("--arch resnet51", "--arch resnet51 is unknown; choose one, as in resnet"),
        ("--epochs 0", "--epochs 0 is too small; give 1 or more"),
        ("--lr -1", "--lr -1.0 is out of range; give 0 or more"),
        ("--momentum 1", "--momentum 1.0 is out of range; give 0 or more and less than 1"),
        ("--momentum 0 --nesterov", "--nesterov needs --momentum above 0"),
        ("--warmup-epochs 3", "--warmup-epochs 3 leaves nothing of --epochs 3"),
        ("--lr-milestones 1,3", "--lr-milestones 1,3 does not fit --epochs 3"),
        ("--lr-schedule cosine --lr-milestones 1", "--lr-milestones 1 means nothing with"),
        ("--weight-decay-milestones 1", "--weight-decay-milestones 1 needs --weight-decay-sche"),
        ("--lr-schedule cosine --weight-decay-schedule 0", "needs --weight-decay-milestones"),
        ("--weight-decay-schedule 4,3,2,1", "has more values than there are milestones"),
        ("--amp fp16", "--amp fp16 needs a GPU; give --amp bf16 or none on the CPU"),
        ("--amp fp8", "--amp fp8 is unknown; choose none or fp16 or bf16"),
        ("--amp bf16 --codistill-peer-dtype float16", "means nothing with --amp bf16, in which"),
        ("--restore-file nothing.pt", "--restore-file nothing.pt is not there"),
        ("--config nothing.yaml", "--config nothing.yaml is not there; name a YAML file"),
        ("--codistill-num-groups 2", "--codistill-dir is missing"),
        ("--codistill-every 0", "--codistill-every 0 is too small; give 1 or more"),
        ("--codistill-head factored", "--codistill-head factored is for large vocabularies"),
        ("--codistill-head chunked", "--codistill-head chunked is for large vocabularies, and"),
        ("--codistill-fused-ce", "--codistill-fused-ce is for large vocabularies"),
        ("--codistill-trust-arch x", "--codistill-trust-arch x is for translation"),
        (
            "--batch-size 1 --arch resnet18",
            "--batch-size 1 does not go with --arch resnet18",
        ),
        (
            "--batch-size 1 --arch resnet18 --dry-run",
            "batch norm has nothing to average over",
        ),
    ],
)
def test_settings(data, tmp_path, capfd, flags, says):
    said = refused(capfd, "--data", data, "--save-dir", tmp_path / "run", *flags.split())
    assert says in said
    assert not (tmp_path / "run").exists()


WRONG = """augmentation:strong log-format:xml lr-schedule:linear codistill-exchange:mail
    num-workers:-1 lr-batch:-1 save-interval-updates:-1 eval-train-images:-1 seed:-1
    seed:9223372036854775808 image-size:0 width:0 epochs-times:0 max-update:0 update-freq:0
    save-interval:0 validate-interval:0 log-interval:0 lr-drop:-1 lr-drop:nan warmup-epochs:-1
    warmup-init-lr:-1 weight-decay:-1 weight-decay:inf label-smoothing:1 label-smoothing:-1
    weight-decay-schedule:-1 codistill-temperature:0 codistill-interval:0""".split()


@pytest.mark.parametrize("wrong", WRONG)
def test_each_flag_says_what_is_wrong_with_it(wrong):
    flag, value = wrong.split(":")
    with pytest.raises(ConfigError, match=f"^--{flag} "):
        parse(["--data", "data", f"--{flag}={value}"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "sets epoch, which is no setting; see --help"),
        ("epochs: many", "sets epochs to 'many', which it cannot be; see --help"),
        ("nesterov: 3", "sets nesterov to 3, which it cannot be"),
        ("- epochs", "holds no settings; write lines as in `epochs: 90`"),
        ("epochs: [", "cannot be read ("),
    ],
)
def test_recipes(data, tmp_path, capfd, text, says):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    said = refused(capfd, "--data", data, "--config", recipe, "--save-dir", tmp_path / "run")
    assert said.startswith(f"--config {recipe} {says}")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path, capfd):
    common = ["--data", data, "--save-dir", tmp_path / "run"]
    assert main([*TINY, *map(str, common), "--epochs", "1"]) == 0
    before = files(tmp_path / "run")
    said = refused(capfd, *common, "--seed", "2")
    assert said.startswith("--seed: seed is now 2, and the checkpoint ")
    assert "--arch" in refused(capfd, *common, "--width", "8")
    # What the optimizer's state would bring back.
    for flag, value in (("momentum", "0.5"), ("nesterov", None), ("no-norm-weight-decay", None)):
        given = [f"--{flag}"] if value is None else [f"--{flag}", value]
        said = refused(capfd, *common, *given)
        assert said.startswith(f"--{flag.removeprefix('no-')}: ")
        assert "go on as it began" in said
    (tmp_path / "run/checkpoint_last.pt").write_bytes(b"PK torn")
    assert "is torn" in refused(capfd, *common)
    assert files(tmp_path / "run") == before


def test_what_has_come_to_nothing_is_not_saved(data, tmp_path, capfd):
    common = ["--data", data, "--save-dir", tmp_path / "run", "--log-interval", "100"]
    assert main([*TINY, *map(str, common), "--epochs", "1"]) == 0
    before = files(tmp_path / "run")
    # No log line falls between here and the end.
    said = refused(capfd, *common, "--lr", "1e30", "--lr-schedule", "cosine")
    assert said.startswith("--lr: training has diverged, the loss before update 4 is nan")
    assert files(tmp_path / "run") == before


def test_in_lockstep_the_others_are_told_that_training_has_come_to_nothing(data, tmp_path, capfd):
    flags = ["--data", data, "--save-dir", tmp_path / "run", "--lr", "1e30"]
    flags += [*LOCKSTEP, "--codistill-num-groups", "2", "--codistill-dir", tmp_path / "exchange"]
    # Nobody is waited for, and no snapshot is due in which the numbers would be seen.
    flags += ["--codistill-burn-in", "100", "--codistill-interval", "100"]
    said = refused(capfd, *flags)
    assert said.startswith("--lr: training has diverged, the loss before update")
    alive = read_alive(Store(str(tmp_path / "exchange")), 0)
    assert alive.failure == said
    assert not alive.running


def launched_with_a_fourth_class(tmp_path, *flags: str) -> tuple[int, list[str]]:
    """Two groups, one of them with a class more; gives the status and both logs."""
    data = write_images(tmp_path / "three", train=12, valid=2)
    other = write_images(tmp_path / "four", train=9, valid=2, classes=CLASSES[:4])
    options = ["--group", f"1: --data {other}"]
    # The slower one meets the other's snapshots.
    flags = (*flags, "--codistill-interval", "1", "--lr", "0.01", "--epochs", "6")
    command = launch_command(data, tmp_path / "out", *flags, options=options)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    return done.returncode, [(tmp_path / f"out/group-{i}/log.txt").read_text() for i in (0, 1)]


def test_lockstep_refuses_a_peer_with_another_number_of_classes(tmp_path):
    status, logs = launched_with_a_fourth_class(tmp_path, *LOCKSTEP)
    assert status != 0
    said = [line for log in logs for line in log.splitlines() if "codistill: error" in line]
    assert any("the same classes" in line for line in said)
    assert not any("Traceback" in log or "train_inner" in log for log in logs)


@pytest.mark.parametrize("program", ["vision", "vision.diagnostics"])
def test_without_torchvision_it_says_what_to_install(program):
    code = (
        "import runpy, sys; sys.modules['torchvision'] = None; "
        "sys.argv[1:] = ['--data', 'nothing', 'nothing.pt']; "
        f"runpy.run_module('fairseq_codistill.{program}', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"codistill: error: python -m fairseq_codistill.{program} needs torchvision, which is not "
        'installed; pip install "fairseq-codistill[vision]"\n'
    )


@pytest.mark.full
def test_async_leaves_out_a_peer_with_another_number_of_classes(tmp_path):
    status, logs = launched_with_a_fourth_class(tmp_path)
    assert status == 0
    assert any("with the same classes" in log for log in logs)
    assert not any('"codistill_peers": "1"' in log for log in logs)
