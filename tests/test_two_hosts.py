"""Two groups on two hosts that share nothing but an S3 endpoint, and a line that is cut."""

import subprocess
import time

import pytest
from faults import SLOW_MODEL, Watch
from harness import BIN, CODISTILL, SEED_STEP, SETTINGS, environment
from hosts import hosts, why_not
from servers import s3_server

CUT_SECONDS = 30
TRAINING_HOURS = 0.055

# The end comes by the clock, so that the cut is in the middle on a fast machine and on a slow one.
# Training stays calm over many epochs, and there is no stop for validation or a checkpoint.
FLAGS = f"""
    --max-update 1000000 --stop-time-hours {TRAINING_HOURS}
    --lr 0.1 --clip-norm 1 --disable-validation --no-save
    --codistill-num-groups 2 --codistill-mode async --codistill-interval 50
    --codistill-alpha-schedule constant
""".split()


def start(host, server, corpus, folder, group):
    """Start a group on a host."""
    folder.mkdir()
    address = f"{host.address}:{server.address.rsplit(':', 1)[1]}"
    command = [str(BIN / "fairseq-train"), str(corpus), *SLOW_MODEL, *SETTINGS, *CODISTILL, *FLAGS]
    command += ["--codistill-dir", server.uri("two-hosts"), "--codistill-group", str(group)]
    command += ["--seed", str(1 + SEED_STEP * group), "--save-dir", str(folder)]
    with open(folder / "log.txt", "w") as log:
        return subprocess.Popen(
            [*host.within, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**server.environment(address)),
        )


def longest_gap(watch, group, start, end):
    """The longest time without an update, between two moments."""
    times = [event.time for event in watch.of(group, "update", start) if event.time < end]
    moments = [start, *times, end]
    return max(b - a for a, b in zip(moments, moments[1:], strict=False))


def swaps(watch, group, start, end=float("inf")):
    """The updates of the peer snapshots that a group took, between two moments."""
    events = watch.of(group, "swap", start)
    return [int(event.fields[1]) for event in events if event.time < end]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_hosts_with_only_s3_in_common_train_to_the_end_though_a_line_is_cut(corpus, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    groups = (0, 1)
    folders = [tmp_path / f"group-{group}" for group in groups]
    watch = Watch({group: folder / "log.txt" for group, folder in enumerate(folders)})
    processes = []
    with s3_server("0.0.0.0") as server, hosts(2, megabits=20, delay_ms=10) as made:
        unreachable = [*made[0].within, "ip", "route", "get", "198.18.1.2"]
        assert subprocess.run(unreachable, capture_output=True).returncode, "they see each other"
        try:
            for group in groups:
                processes.append(start(made[group], server, corpus, folders[group], group))
            watch.start()
            begun = time.monotonic()
            watch.wait_for(
                lambda: all(len(watch.of(group, "swap")) >= 3 for group in groups), processes
            )
            made[0].cut()
            cut = time.monotonic()
            at_cut = [watch.update(group) for group in groups]
            time.sleep(CUT_SECONDS)
            made[0].mend()
            mended = time.monotonic()
            at_mend = [watch.update(group) for group in groups]
            # Not what was on its way, but what the other one has made since.
            watch.wait_for(
                lambda: all(
                    max(swaps(watch, g, mended), default=0) > at_mend[1 - g] for g in groups
                ),
                processes,
            )
            again = time.monotonic()
            for process in processes:
                process.wait(timeout=900)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            watch.stop()
    for group in groups:
        assert processes[group].returncode == 0, (folders[group] / "log.txt").read_text()[-3000:]
        assert " | done training in " in (folders[group] / "log.txt").read_text()
        # The exchange has the last of it too.
        assert int(watch.of(group, "published")[-1].fields[0]) == watch.update(group)
        gap = longest_gap(watch, group, cut, mended)
        before, after = (len(swaps(watch, group, *span)) for span in ((begun, cut), (mended,)))
        print(
            f"group {group}: updates {at_cut[group]} to {at_mend[group]} during the cut of "
            f"{mended - cut:.1f} s, longest gap {gap:.2f} s (before it "
            f"{longest_gap(watch, group, watch.of(group, 'update')[0].time, cut):.2f} s); peer "
            f"snapshots taken: {before} before, {len(swaps(watch, group, cut, mended))} during, "
            f"{after} after it"
        )
        assert at_mend[group] > at_cut[group]
        assert gap < CUT_SECONDS / 2
    print(f"new snapshots both ways {again - mended:.1f} s after the line was mended")
    # What group 0 had fetched already it may still take: the cut is one.
    assert not swaps(watch, 0, cut + 5, mended)
