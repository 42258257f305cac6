"""A relaunch on the same OUT with other settings."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fairseq import options as fairseq_options
from harness import BIN, CODISTILL, MODEL, SETTINGS, environment
from printed import printed

from fairseq_codistill import cli
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import changed, record, run, settings
from fairseq_codistill.launch.commands import exchange_address, workers_of

TRAIN = "fairseq-train data --cpu --lr 0.5 --codistill-interval 50"
HYDRA = "fairseq-hydra-train common.cpu=true --config-dir conf --config-name tiny"
VISION = "python -m fairseq_codistill.vision --cpu --data images --config conf/tiny.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory to launch from, with data in it and in another one."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "other", "images", "conf", "elsewhere/data"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink("data", tmp_path / "link")
    return tmp_path


def options_of(line: str, groups: int = 2, workers: int | None = None, group: Sequence[str] = ()):
    return run.Options(
        groups=groups,
        workers_per_group=workers,
        out=Path("out").absolute(),
        max_restarts=3,
        hang_timeout=0.0,
        group_flags=group,
        command=shlex.split(line),
    )


def launched(line: str, trained: bool = True, **options: object) -> None:
    """Leave what a launch leaves that was ended after a checkpoint."""
    said = options_of(line, **options)
    plan = run.make_plan(said)
    plan.folder(0).mkdir(parents=True, exist_ok=True)
    record.write(
        plan.out,
        record.Identity(plan.run_id, plan.nonces),
        said.command,
        [workers_of(plan, group, port=1) for group in range(plan.groups)],
        said.for_the_record(),
        exchange_address(plan),
        changed.files_of(plan),
    )
    if trained:
        (plan.folder(0) / "checkpoint_last.pt").touch()


def relaunch(line: str, allow: Sequence[str] = (), out: Path | None = None, **options: object):
    """Ask whether a launch may follow, and what it changes."""
    out = out or Path("out").absolute()
    said = options_of(line, **options)
    said = type(said)(**{**vars(said), "out": out, "allow_changed": allow})
    plan = run.make_plan(said)
    return changed.changes(plan, record.read(out), allow)


def again(line: str, allow: Sequence[str] = (), out: Path | None = None, **options: object):
    """The same, and what it says of changes that are allowed."""
    return list(relaunch(line, allow, out, **options).allowed)


@pytest.mark.parametrize(
    ("before", "now", "name", "says"),
    [
        (TRAIN, TRAIN.replace("50", "100"), "codistill-interval", "--codistill-interval was 50 an"),
        (TRAIN, TRAIN.replace("50", "50.5"), "codistill-interval", "was 50 and is 50.5 now"),
        (TRAIN, TRAIN.replace("0.5", "0.1"), "lr", "--lr was 0.5 and is 0.1 now"),
        (TRAIN, f"{TRAIN} --lr=0.1", "lr", "--lr was 0.5 and is 0.1 now"),
        (TRAIN, f"{TRAIN} --clip-norm 1", "clip-norm", "--clip-norm was not given and is 1 now"),
        (f"{TRAIN} --clip-norm 1", TRAIN, "clip-norm", "--clip-norm was 1 and is not given now"),
        (TRAIN, f"{TRAIN} --sentence-avg", "sentence-avg", "was not given and is true now"),
        (TRAIN, f"{TRAIN} --reset-optimizer", "reset-optimizer", "--reset-optimizer was not giv"),
        (TRAIN, f"{TRAIN} --my-own", "my-own", "--my-own was not given and is true now"),
        (TRAIN, TRAIN.replace("data", "other"), "data", "DATA was data and is other now"),
        (TRAIN, f"{TRAIN} --no-save more", "data", "DATA was data and is data more now"),
        (TRAIN, f"{TRAIN} -s en", "source-lang", "--source-lang was not given and is en now"),
        (f"{TRAIN} --seed 1", f"{TRAIN} --seed 2", "seed", "--seed was 1 and is 2 now"),
        (TRAIN, f"{TRAIN} --seed 2", "seed", "--seed was 1 and is 2 now"),
        (TRAIN, f"{TRAIN} --codistill-dir x", "codistill-dir", "/out/exchange and is x now"),
        (TRAIN, f"{TRAIN} --update-freq 2", "update-freq", "--update-freq was 1 and is 2 now"),
        (TRAIN, f"{TRAIN} --user-dir x", "user-dir", "--user-dir was not given and is x now"),
        (HYDRA, f"{HYDRA} optimization.lr=[0.1]", "optimization.lr", "optimization.lr was not giv"),
        (
            f"{HYDRA} ++optimization.lr=[0.5]",
            f"{HYDRA} optimization.lr=[0.1]",
            "optimization.lr",
            "optimization.lr was [0.5] and is [0.1] now",
        ),
        (f"{HYDRA} lr_scheduler.max_update=9", HYDRA, "lr_scheduler.max_update", "was 9 and is no"),
        (HYDRA, f"{HYDRA} ~optimization.lr", "~optimization.lr", "~optimization.lr was not given"),
        (VISION, f"{VISION} --no-nesterov", "nesterov", "--nesterov was not given and is false n"),
        (VISION, f"{VISION} --width 9", "width", "--width was not given and is 9 now"),
        (VISION, VISION.replace("images", "data"), "data", "--data was images and is data now"),
        (TRAIN, HYDRA, "program", "the program was fairseq-train and is fairseq-hydra-train now"),
    ],
)
def test_another_setting_is_refused_and_can_be_allowed(before, now, name, says):
    launched(before)
    assert again(before) == []
    with pytest.raises(UserError) as refused:
        again(now)
    assert says in str(refused.value)
    assert f"--allow-changed {shlex.quote(name)} is missing" in str(refused.value)
    for spelling in (name, name.replace("-", "_"), f"--{name}"):
        (told,) = again(now, allow=["another", spelling])
        assert says in told
    # It is the setting of the run from now on.
    launched(now)
    assert again(now) == []
    with pytest.raises(UserError, match=f"--allow-changed {re.escape(shlex.quote(name))}"):
        again(before)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (TRAIN, f"{TRAIN} --max-update 9 --max-epoch 9 --stop-time-hours 9 --patience 9"),
        (TRAIN, f"{TRAIN} --log-interval 9 --log-format json --tensorboard-logdir x"),
        (TRAIN, f"{TRAIN} --save-interval 9 --no-epoch-checkpoints --keep-last-epochs 2"),
        (f"{TRAIN} --disable-validation --max-update 5", TRAIN),
        (f"{TRAIN} --max-sentences-valid 5", f"{TRAIN} --batch-size-valid 6 --codistill-timeout 9"),
        # Launch says these.
        (TRAIN, f"{TRAIN} --codistill-num-groups 3 --save-dir x --codistill-run-id x"),
        # Written in another way.
        (TRAIN, "fairseq-train --codistill-interval 50 --lr .5 --cpu data"),
        (TRAIN, "python -m fairseq_cli.train --codistill-interval=50 --lr 5e-1 data --cpu"),
        (f"{TRAIN} --own", "fairseq-train --cpu --lr 0.5 --codistill-interval 50 --own data"),
        (f"{TRAIN} --lr 1 --codistill-mode async", f"{TRAIN} --codistill-mode async --lr 1.0"),
        (f"{TRAIN} --adam-betas '(0.9, 0.98)'", f"{TRAIN} --adam-betas (0.90,0.98)"),
        (f"{TRAIN} --max-sentences 5", f"{TRAIN} --batch-size 5"),
        (f"{TRAIN} --clip-norm -1", f"{TRAIN} --clip-norm -1.0"),
        (f"{TRAIN} --seed 1", TRAIN),
        (TRAIN, f"{TRAIN} --codistill-dir out/exchange"),
        (f"{TRAIN} --codistill-dir ./x", f"{TRAIN} --codistill-dir file://{{here}}/x"),
        (TRAIN, TRAIN.replace("data", "./data/")),
        (TRAIN, TRAIN.replace("data", "{here}/link")),
        (TRAIN.replace("data", "data:other"), TRAIN.replace("data", "link:{here}/other")),
        (
            f"{HYDRA} task.data=data optimization.lr=[0.5] common.seed=3",
            f"{HYDRA} ++common.seed=3 +optimization.lr=[5e-1] 'task.data=\"{{here}}/data\"'",
        ),
        (HYDRA, f"{HYDRA} optimization.max_update=5 dataset.validate_interval=3 common.log_file=x"),
        (HYDRA, f"{HYDRA} hydra.run.dir=x hydra/job_logging=disabled checkpoint.patience=3"),
        (VISION, f"{VISION} --max-update 5 --epochs 5 --eval-train-images 6 --log-interval 7"),
        # Defaults that launch knows.
        (TRAIN, f"{TRAIN} --update-freq 1 --seed 1"),
        (HYDRA, f"{HYDRA} optimization.update_freq=[1] common.seed=1"),
        (VISION, f"{VISION} --update-freq 1 --seed 1"),
        # Installed anew, for another Python.
        (
            f"{TRAIN} --user-dir /one/lib/python3.11/site-packages/fairseq_codistill",
            f"{TRAIN} --user-dir /two/lib/python3.12/site-packages/fairseq_codistill/",
        ),
        (f"{VISION} --nesterov --no-nesterov", f"{VISION} --no-nesterov"),
        # How the work is done, and not what it comes to.
        (TRAIN, f"{TRAIN} --num-workers 4 --data-buffer-size 20 --empty-cache-freq 100"),
        (TRAIN, f"{TRAIN} --all-gather-list-size 65536 --bucket-cap-mb 50 --nprocs-per-node 2"),
        (TRAIN, f"{TRAIN} --ddp-backend legacy_ddp --distributed-backend gloo"),
        (TRAIN, f"{TRAIN} --checkpoint-activations --load-checkpoint-on-all-dp-ranks"),
        (TRAIN, f"{TRAIN} --min-loss-scale 0.1 --skip-invalid-size-inputs-valid-test"),
        (TRAIN, f"{TRAIN} --find-unused-parameters --gradient-as-bucket-view --plasma-path x"),
        (HYDRA, f"{HYDRA} dataset.num_workers=3 ++model.checkpoint_activations=true"),
        (HYDRA, f"{HYDRA} common.min_loss_scale=0.1 distributed_training.bucket_cap_mb=9"),
        (VISION, f"{VISION} --num-workers 2 --cache-images --no-check-images"),
        # A number for each epoch; the last one is for all that follow.
        (f"{TRAIN} --update-freq 2", f"{TRAIN} --update-freq 2,2"),
        (f"{TRAIN} --update-freq 1,2", f"{TRAIN} --update-freq [1,2.0,2]"),
        (f"{TRAIN} --lr 0.25", f"{TRAIN} --lr 0.25,.25"),
        # Two clones, two ways to name one exchange, one switch.
        (f"{TRAIN} --user-dir fairseq_codistill", f"{TRAIN} --user-dir ../clone/fairseq_codistill"),
        (f"{TRAIN} --codistill-dir s3://b/x", f"{TRAIN} --codistill-dir s3://b/x/"),
        (f"{HYDRA} common.fp16=true", f"{HYDRA} common.fp16=1"),
    ],
)
def test_length_and_logs_may_change_and_what_means_the_same_is_no_change(here, before, now):
    launched(before.format(here=here))
    assert again(now.format(here=here)) == []
    # And back.
    launched(now.format(here=here))
    assert again(before.format(here=here)) == []


def test_all_that_differs_is_told_at_once():
    launched(TRAIN)
    now = "fairseq-train other --cpu --lr 0.1 --codistill-interval 50"
    with pytest.raises(UserError, match="^--allow-changed data --allow-changed lr is missing"):
        again(now)
    with pytest.raises(UserError, match="^--allow-changed data is missing"):
        again(now, allow=["lr"])
    assert len(again(now, allow=["lr", "data"])) == 2


def test_flags_of_single_groups():
    launched(TRAIN, group=["1: --lr 0.1"])
    assert again(TRAIN, group=["1: --lr=1e-1 --max-update 7"]) == []
    # Wherever it is said.
    assert again(TRAIN, group=["1: --lr 0.1", "0: --lr 0.5"]) == []
    assert again(TRAIN.replace("0.5", "0.1"), group=["0: --lr 0.5"]) == []
    with pytest.raises(UserError, match=r"--lr was 0.1 and is 0.5 now \(group 1\)\. Give"):
        again(TRAIN)
    with pytest.raises(UserError, match=r"--lr was 0.5 and is 0.1 now \(group 0\)\. Give"):
        again(TRAIN, group=["1: --lr 0.1", "0: --lr 0.1"])


def test_the_number_of_workers_and_of_groups():
    launched(TRAIN, workers=2)
    assert again(TRAIN, workers=2) == []
    says = r"workers of a group \(--workers-per-group, or its GPUs\) was 2 and is 1 now"
    with pytest.raises(UserError, match=says):
        again(TRAIN)
    assert len(again(TRAIN, allow=["workers-per-group"])) == 1
    launched(TRAIN)
    with pytest.raises(UserError, match="--groups 3 is not .* which is 2.* --allow-changed groups"):
        again(TRAIN, groups=3)
    (told,) = again(TRAIN, groups=3, allow=["groups"])
    assert told == "--groups was 2 and is 3 now"
    before = record.read(Path("out"))
    for groups in (1, 3):
        who = record.identity(Path("out"), groups, may_differ=True)
        assert who.run_id == before["run_id"]
        assert list(who.nonces[:2]) == before["nonces"][:groups]
        assert len(set(who.nonces)) == groups


FOUR, TWO = {"workers": 4}, {"workers": 2}


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (("", FOUR), ("--update-freq 2", TWO), True),
        (("--update-freq 3", TWO), ("--update-freq 6", {}), True),
        (("--update-freq [1,2]", TWO), ("--update-freq 2,4", {}), True),
        (("--update-freq 1,2", TWO), ("--update-freq 2,2", {}), False),
        (("", FOUR), ("", TWO), False),
        (("", FOUR), ("--update-freq 4", TWO), False),
        # A group for itself.
        (("", TWO), ("--update-freq 2", {"group": ["1: --update-freq 2"]}), True),
        (("", TWO), ("--update-freq 2", {"group": ["1: --update-freq 1"]}), False),
    ],
)
def test_other_devices_for_the_same_batches_are_no_change(before, now, same):
    for base in (TRAIN, VISION):
        launched(f"{base} {before[0]}", **before[1])
        line, options = f"{base} {now[0]}", now[1]
        if same:
            assert again(line, **options) == []
            continue
        with pytest.raises(UserError, match="--allow-changed workers-per-group"):
            again(line, **options)


def test_other_gpus_for_the_same_batches_are_no_change(monkeypatch):
    """fairseq starts the workers on GPUs by itself: launch has one process a group."""
    hydra = "fairseq-hydra-train task.data=data optimization.update_freq"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    for line in ("fairseq-train data --update-freq", hydra):
        launched(f"{line}=[2]")
        written = record.read(Path("out"))
        assert [len(group) for group in written["groups"]] == [1, 1]
        with monkeypatch.context() as other:
            other.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
            assert again(f"{line}=[4]") == []
            with pytest.raises(UserError, match="or its GPUs. was 4 and is 2 now"):
                again(f"{line}=[2]")
        assert again(f"{line}=[2]") == []


def test_the_recipes_with_another_number_of_gpus(here, monkeypatch):
    def command(line):
        words = next(words for words in printed(line, here) if words[0] == "codistill")
        return shlex.join(words[words.index("--") + 1 :])

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(16))))
    launched(command("wmt16_big.sh --gpus 16"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert again(command("wmt16_big.sh --gpus 4")) == []
    with pytest.raises(UserError, match="--update-freq was 8 and is 64 now"):
        again(command("wmt16_big.sh --gpus 4 --full-batch"))


def test_a_run_that_was_moved_with_its_data(here, monkeypatch):
    """Its relative paths mean what they meant; that they are elsewhere is no change."""
    (here / "old/data").mkdir(parents=True)
    monkeypatch.chdir(here / "old")
    launched(f"{TRAIN} --codistill-dir x")
    (here / "old").rename(here / "new")
    monkeypatch.chdir(here / "new")
    assert again(f"{TRAIN} --codistill-dir x") == []


def test_a_project_that_was_copied_with_its_run(here, monkeypatch):
    """The original is still there; what lies in the copy as it did in the original is the same."""
    (here / "old/project/data").mkdir(parents=True)
    (here / "old/project/data/train.bin").write_text("1234")
    (here / "old/project/fairseq_codistill").mkdir()
    monkeypatch.chdir(here / "old/project")
    line = f"{TRAIN} --user-dir fairseq_codistill --codistill-dir x"
    launched(line)
    shutil.copytree(here / "old", here / "new")
    monkeypatch.chdir(here / "new/project")
    assert again(line) == []
    assert again(line.replace(" data", f" {here}/new/project/data")) == []
    # The original's, which are the same data.
    assert again(line.replace(" data", f" {here}/old/project/data")) == []
    monkeypatch.chdir(here / "new")
    out = here / "new/project/out"
    relative = TRAIN.replace(" data", " project/data")
    elsewhere = f"{relative} --user-dir fairseq_codistill --codistill-dir project/x"
    assert again(elsewhere, out=out) == []
    (here / "new/project/data/train.bin").write_text("12345")
    says = f"DATA was {here}/old/project/data and is {here}/new/project/data now"
    monkeypatch.chdir(here / "new/project")
    with pytest.raises(UserError, match=re.escape(says)):
        again(line)


def test_a_run_that_was_copied_without_its_data(here, monkeypatch):
    launched(TRAIN)
    shutil.copytree(here / "out", here / "elsewhere/out")
    assert again(TRAIN, out=here / "elsewhere/out") == []
    (here / "elsewhere/data/of-another-kind").touch()
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(UserError, match="DATA was .*/data and is .*/elsewhere/data now"):
        again(TRAIN)


def test_a_relative_user_dir_of_ones_own_in_another_directory(here, monkeypatch):
    (here / "mine").mkdir()
    out = here / "out"
    launched(f"{TRAIN} --user-dir mine")
    monkeypatch.chdir(here / "elsewhere")
    line = f"{TRAIN.replace('data', '../data')} --user-dir mine"
    with pytest.raises(UserError, match="--user-dir was .*/mine and is .*/elsewhere/mine now"):
        again(line, out=out)


RESTORE = "--restore-file data/x.pt --reset-optimizer"


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        (RESTORE, "", None),
        ("--finetune-from-model data/x.pt", "", None),
        ("--reset-optimizer --reset-meters", "", None),
        # Launch tells a group that resumes nothing of it.
        ("", RESTORE, None),
        (RESTORE, "--restore-file data/y.pt --reset-dataloader", None),
        # It is told of these.
        ("", "--reset-optimizer", "reset-optimizer"),
        (RESTORE, "--reset-optimizer", "reset-optimizer"),
        ("--reset-meters", "--reset-dataloader", "reset-dataloader"),
    ],
)
def test_where_the_run_began(here, before, now, refused):
    launched(f"{TRAIN} {before}")
    for group in (0, 1):
        write_checkpoint(here / f"out/group-{group}/checkpoint_last.pt")
    if refused is None:
        assert again(f"{TRAIN} {now}") == []
        return
    with pytest.raises(UserError, match=f"^--allow-changed {refused} is missing"):
        again(f"{TRAIN} {now}")


def test_where_a_group_begins_that_has_no_checkpoint_yet(here):
    launched(f"{TRAIN} {RESTORE}")
    write_checkpoint(here / "out/group-0/checkpoint_last.pt")
    with pytest.raises(UserError, match=r"restore-file was .* not given now \(group 1\)"):
        again(TRAIN)
    with pytest.raises(UserError, match=r"reset-optimizer was true .* not given now \(group 1\)"):
        again(f"{TRAIN} --restore-file data/x.pt")
    (here / "out/group-1").mkdir()
    write_checkpoint(here / "out/group-1/checkpoint_last.pt")
    assert again(TRAIN) == []


def write_checkpoint(path: Path) -> None:
    """A checkpoint as far as launch looks: complete, of update 7."""
    state = {"optimizer_history": [{"num_updates": 7}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


COSINE = f"{TRAIN} --lr-scheduler cosine --max-update 100"
PLATEAU = f"{TRAIN} --lr-scheduler reduce_lr_on_plateau"


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (COSINE, f"{COSINE} --max-update 200", "--max-update was 100 and is 200 now, and the lea"),
        (COSINE, f"{COSINE} --max-update 1e2 --max-epoch 3", None),
        (f"{COSINE} --lr-period-updates 9", f"{COSINE} --lr-period-updates 9 --max-update 2", None),
        (TRAIN, f"{TRAIN} --max-update 200", None),
        (
            f"{TRAIN} --lr-scheduler inverse_sqrt",
            f"{TRAIN} --lr-scheduler inverse_sqrt --max-update 2",
            None,
        ),
        (
            f"{TRAIN} --lr-scheduler polynomial_decay --max-update 5",
            f"{TRAIN} --lr-scheduler polynomial_decay --max-update 6",
            "--max-update was 5 and is 6 now",
        ),
        (
            f"{TRAIN} --lr-scheduler polynomial_decay --total-num-update 5",
            f"{TRAIN} --lr-scheduler polynomial_decay --total-num-update 5 --max-update 6",
            None,
        ),
        (
            f"{TRAIN} --lr-scheduler tri_stage --phase-ratio (0.1,0.4,0.5)",
            f"{TRAIN} --lr-scheduler tri_stage --phase-ratio (0.1,0.4,0.5) --max-update 6",
            "--max-update was not given and is 6 now",
        ),
        (PLATEAU, f"{PLATEAU} --validate-interval 2", "--validate-interval was not given and is 2"),
        (PLATEAU, f"{PLATEAU} --disable-validation", "--disable-validation was not given and is"),
        (PLATEAU, f"{PLATEAU} --max-update 2 --save-interval 2", None),
        (TRAIN, f"{TRAIN} --validate-interval 2", None),
        (
            f"{HYDRA} lr_scheduler=cosine optimization.max_update=5",
            f"{HYDRA} lr_scheduler=cosine optimization.max_update=6",
            "--max-update was 5 and is 6 now",
        ),
        (
            f"{VISION} --lr-schedule cosine",
            f"{VISION} --lr-schedule cosine --epochs 5",
            "--epochs ",
        ),
        (f"{VISION} --epochs 3", f"{VISION} --epochs 5", "--epochs was 3 and is 5 now"),
        (f"{VISION} --lr-milestones 1", f"{VISION} --lr-milestones 1 --epochs 5", None),
        (f"{VISION} --lr-schedule constant", f"{VISION} --lr-schedule constant --epochs 5", None),
        (VISION, f"{VISION} --max-update 5", None),
    ],
)
def test_a_length_that_a_schedule_spans_is_told(before, now, says):
    launched(shlex.join(before.split()))
    told = relaunch(shlex.join(now.split()))
    assert told.allowed == ()
    if says is None:
        assert told.notes == ()
        return
    (note,) = told.notes
    assert note.startswith(says)
    assert "the learning rate depends on it (--lr-schedule" in note


def test_a_schedule_in_hydras_file_is_told_too(here):
    tiny = here / "conf/tiny.yaml"
    content = "optimization: {max_update: 5}\nlr_scheduler: {_name: cosine, max_update: 9}\n"
    tiny.write_text(content)
    launched(HYDRA)
    tiny.write_text(content.replace("5", "6"))
    (note,) = relaunch(HYDRA).notes
    assert note.startswith("--max-update was 5 and is 6 now")
    tiny.write_text(content)
    (note,) = relaunch(HYDRA, group=["1: optimization.max_update=7"]).notes
    assert note.endswith("(group 1)")


def test_launch_says_that_a_schedule_spans_the_length(here, capsys):
    launched(COSINE)
    line = ["launch", "--groups", "2", "--out", "out", "--print", "--", *shlex.split(COSINE)]
    assert cli.main([*line, "--max-update", "200"]) == 0
    assert "# --max-update was 100 and is 200 now" in capsys.readouterr().out


def test_a_relative_path_means_another_place_in_another_directory(here, monkeypatch):
    launched(f"{TRAIN} --codistill-topology ring --arch transformer")
    out = here / "out"
    monkeypatch.chdir(here / "elsewhere")
    says = f"DATA was {here}/data and is {here}/elsewhere/data now"
    with pytest.raises(UserError, match=re.escape(says)):
        again(f"{TRAIN} --codistill-topology ring --arch transformer", out=out)
    moved = TRAIN.replace("data", "../data")
    assert again(f"{moved} --codistill-topology ring --arch transformer", out=out) == []


def test_a_file_of_settings_is_compared_by_what_it_says(here):
    tiny = here / "conf/tiny.yaml"
    tiny.write_text("lr: 0.5\nepochs: 3\nnesterov: true\nlr_milestones: [1, 2]\nlog_interval: 5\n")
    launched(VISION)
    assert again(VISION) == []
    (here / "conf/new.yaml").write_text("# Another\nepochs: 3.0\nnesterov: true\nlog_interval: 6\n")
    moved = f"{VISION.replace('tiny', 'new')} --lr .5 --lr-milestones 1,2"
    assert again(moved) == []
    tiny.write_text("lr: 0.25\nepochs: 3\nlr_milestones: [1, 2]\n")
    with pytest.raises(UserError, match="^--allow-changed lr --allow-changed nesterov is missing"):
        again(VISION)
    # What the command says wins over the file.
    assert again(f"{VISION} --lr 0.5 --nesterov") == []


def test_a_file_of_hydras_and_those_that_it_is_composed_of(here):
    (here / "conf/model").mkdir()
    tiny, big = here / "conf/tiny.yaml", here / "conf/model/big.yaml"
    content = """
defaults: [{model: big}]
optimization: {lr: [0.5], max_update: 5}
task: {data: data, secret: "${oc.env:HOME}"}
"""
    tiny.write_text(content)
    big.write_text("width: 5\n")
    launched(HYDRA)
    said = json.loads((here / "out/launch.json").read_text())["files"]["conf/tiny.yaml"]
    assert said["task.secret"] == "${oc.env:HOME}"
    assert again(HYDRA) == []
    tiny.write_text(content.replace("max_update: 5", "max_update: 6"))
    assert again(HYDRA) == []
    tiny.write_text(content.replace("0.5", "0.6"))
    with pytest.raises(UserError, match=r"optimization\.lr was \[0\.5\] and is \[0\.6\] now"):
        again(HYDRA)
    assert again(f"{HYDRA} optimization.lr=[0.5]") == []
    tiny.write_text(content)
    big.write_text("# Wider\nwidth:   5\n")
    assert again(HYDRA) == []
    big.write_text("width: 6\n")
    with pytest.raises(UserError, match=r"--allow-changed model/big\.yaml is missing"):
        again(HYDRA)
    assert len(again(HYDRA, allow=["model/big.yaml"])) == 1


def test_a_file_for_one_group_alone(here):
    for name in ("tiny", "own"):
        (here / f"conf/{name}.yaml").write_text("lr: 0.5\n")
    launched(VISION, group=["1: --config conf/own.yaml"])
    assert again(VISION, group=["1: --config conf/own.yaml"]) == []
    assert again(VISION) == []
    (here / "conf/own.yaml").write_text("lr: 0.6\n")
    with pytest.raises(UserError, match=r"--lr was 0\.5 and is 0\.6 now \(group 1\)"):
        again(VISION, group=["1: --config conf/own.yaml"])


def test_a_topology_is_compared_by_what_its_file_says(here):
    (here / "a.txt").write_text("0: 1\n1: 0\n")
    launched(f"{TRAIN} --codistill-topology a.txt")
    (here / "b.txt").write_text("0: 1\n1: 0\n")
    assert again(f"{TRAIN} --codistill-topology b.txt") == []
    (here / "a.txt").write_text("0: 1\n")
    with pytest.raises(UserError, match="--codistill-topology was SHA-256"):
        again(f"{TRAIN} --codistill-topology a.txt")


def test_hydras_keys_go_by_their_last_part_too():
    launched(HYDRA)
    now = f"{HYDRA} task.codistill_interval=3 optimization.lr=[0.1]"
    assert len(again(now, allow=["codistill-interval", "lr"])) == 2
    with pytest.raises(UserError, match=r"^--allow-changed task\.codistill_interval is missing"):
        again(now, allow=["interval", "lr"])


def test_a_record_of_an_earlier_version(here):
    """It does not have what files said, and the earliest not the options of launch."""
    (here / "conf/tiny.yaml").write_text("lr: 0.5\n")
    launched(VISION)
    path = here / "out/launch.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in written.items() if k != "files"}))
    (here / "conf/tiny.yaml").write_text("lr: 0.6\n")
    assert again(VISION) == []
    with pytest.raises(UserError, match="--allow-changed workers-per-group is missing"):
        again(VISION, workers=2)
    with pytest.raises(UserError, match="--momentum was not given and is 0 now"):
        again(f"{VISION} --momentum 0")
    with pytest.raises(UserError, match=r"--config was conf/tiny\.yaml and is conf/other\.yaml"):
        again(VISION.replace("tiny", "other"))
    old = {k: v for k, v in written.items() if k not in ("files", "options", "directory")}
    path.write_text(json.dumps(old))
    assert again(VISION, group=["1: --momentum 0"]) == []
    # One that was written by hand.
    path.write_text(json.dumps({k: v for k, v in written.items() if k != "command"}))
    assert again(f"{VISION} --momentum 0") == []


@pytest.mark.parametrize(
    "fields", [{"command": ["x"]}, {"command": []}, {"options": ["--group", "nonsense"]}]
)
def test_a_record_that_cannot_be_read(here, fields):
    launched(TRAIN)
    path = here / "out/launch.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=r"launch\.json holds a command that this version cannot"):
        again(TRAIN)


def test_before_anything_is_trained_a_setting_can_be_corrected():
    launched(f"{TRAIN} --codistill-alpha -1", trained=False)
    assert again(f"{TRAIN} --codistill-alpha 1") == []


def test_values_cannot_spoil_the_terminal():
    launched(TRAIN)
    with pytest.raises(UserError) as refused:
        again(f"{TRAIN} --arch '\x1b[2J{'x' * 1000}'")
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    with pytest.raises(UserError) as refused:
        again(f"{TRAIN} '--{'x' * 1000}\x1b[2J' 1")
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_file_with_odd_names_is_recorded_and_read_again(here):
    (here / "conf/tiny.yaml").write_text('"lr\\0": "\\0"\n"\\uD800": 1\n3: 4\n')
    launched(VISION)
    assert "lr" in (here / "out/launch.json").read_text()
    assert again(VISION) == []


def test_the_flags_without_a_value_are_those_of_fairseq():
    """Those at least that may be added and left out: the word after one is not its value."""
    parser = fairseq_options.get_training_parser()
    found = {
        name.removeprefix("--")
        for action in parser._actions
        if action.nargs == 0
        for name in action.option_strings
    }
    free = {settings.plain(name) for name in found} & changed.FREE
    assert len(free) > 10
    assert free <= settings.BARE


def test_the_command_refuses_and_changes_nothing(here, capsys):
    launched(TRAIN)
    before = (here / "out/launch.json").read_text()
    line = ["launch", "--groups", "2", "--out", "out"]
    other = ["--", *shlex.split(TRAIN), "--lr", "0.25"]
    for more in ([], ["--print"]):
        assert cli.main([*line, *more, *other]) == 2
        assert "--lr was 0.5 and is 0.25 now" in capsys.readouterr().err
    assert (here / "out/launch.json").read_text() == before
    assert cli.main([*line, "--print", "--allow-changed", "lr", *other]) == 0


def test_a_real_run_goes_on_with_what_is_allowed(here, corpus):
    def launch(*flags: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess:
        command = [
            *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", "out", *options],
            *["--", "fairseq-train", str(corpus), *MODEL, *SETTINGS, *CODISTILL, *flags],
        ]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=500, check=False
        )

    # 3: with so few updates a group may end before it has seen the other.
    first = launch("--codistill-interval", "5")
    assert first.returncode in (0, 3), first.stdout + first.stderr
    refused = launch("--codistill-interval", "4", "--max-update", "30")
    assert refused.returncode == 2
    assert "--codistill-interval was 5 and is 4 now" in refused.stderr
    allowed = ["--allow-changed", "codistill-interval"]
    went_on = launch("--codistill-interval", "4", "--max-update", "30", options=allowed)
    assert went_on.returncode in (0, 3), went_on.stdout + went_on.stderr
    says = "goes on with another setting: --codistill-interval was 5 and is 4 now"
    assert says in went_on.stdout
    # From now on it is the run's.
    assert launch("--codistill-interval", "4", "--max-update", "30").returncode in (0, 3)
