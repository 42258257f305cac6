"""Groups that come late and groups that leave early."""

import signal

import pytest
from faults import SLOW_MODEL, Watch
from harness import CODISTILL, SEED_STEP, Run, finish, start

INTERVAL = 50
UPDATES = 800


def flags(exchange, group: int, groups: int, *more: str) -> list[str]:
    return [
        *[*CODISTILL, "--codistill-dir", str(exchange), "--codistill-num-groups", str(groups)],
        *["--codistill-group", str(group), "--seed", str(1 + SEED_STEP * group)],
        *["--codistill-interval", str(INTERVAL), "--optimizer", "adam", "--lr", "0.001"],
        *["--disable-validation", *more],
    ]


def peers(run: Run) -> dict[int, int]:
    """How many peers counted in each update."""
    return {int(line["num_updates"]): int(line["codistill_peers"]) for line in run.lines()}


@pytest.mark.full
def test_a_late_group_is_used_from_its_first_snapshot_on(corpus, tmp_path):
    exchange = tmp_path / "exchange"
    folders = {group: tmp_path / str(group) for group in range(3)}
    watch = Watch({group: folder / "log.txt" for group, folder in folders.items()})
    watch.start()

    def begin(group: int, updates: int):
        more = [*SLOW_MODEL, "--max-update", str(updates)]
        return start(corpus, folders[group], *flags(exchange, group, 3, *more))

    others = [begin(group, UPDATES) for group in (0, 1)]
    watch.wait_for(lambda: min(map(watch.update, (0, 1))) >= UPDATES // 2, others)
    late = begin(2, 4 * INTERVAL)
    runs = [finish(p, folders[group]) for group, p in enumerate([*others, late])]
    watch.stop()

    first = watch.of(2, "published")[0]
    assert first.fields[0] == str(INTERVAL)
    began = watch.of(2, "update")[0].time
    for group in (0, 1):
        assert watch.update(group, at=began) >= UPDATES // 2
        swap = next(e for e in watch.of(group, "swap") if e.fields[0] == "2")
        there, used = watch.update(group, at=first.time), int(swap.fields[3])
        print(
            f"group 2's first snapshot, of update {swap.fields[1]}, was there at group {group}'s "
            f"update {there}, and was used from update {used} on, {swap.time - first.time:.2f} s "
            "later"
        )
        assert swap.fields[1] == str(INTERVAL), "its first snapshot was left out"
        # The next snapshot of the late group comes after INTERVAL updates.
        assert used - there <= 2 * INTERVAL
        counted = peers(runs[group])
        # Line k + 1 is the update that follows the boundary after k updates.
        assert counted[used] == 1
        assert {counted[update] for update in range(used + 1, UPDATES + 1)} == {2}
    # The late group learns from the others from its beginning on.
    swaps = [(e.fields[0], int(e.fields[3])) for e in watch.of(2, "swap")]
    assert {peer for peer, update in swaps if update < INTERVAL} == {"0", "1"}


@pytest.mark.full
def test_a_group_that_left_is_used_until_it_is_stale_and_again_when_it_is_back(corpus, tmp_path):
    exchange = tmp_path / "exchange"
    limit, left, left_again, updates = 150, 100, 300, 500
    folders = {group: tmp_path / str(group) for group in (0, 1)}
    watch = Watch({group: folder / "log.txt" for group, folder in folders.items()})
    watch.start()

    def group_1(until: int) -> None:
        more = flags(exchange, 1, 2, *SLOW_MODEL, "--max-update", str(until))
        finish(start(corpus, folders[1], *more), folders[1])

    more = flags(exchange, 0, 2, *SLOW_MODEL, "--max-update", str(updates))
    stays = start(corpus, folders[0], *more, "--codistill-max-staleness", str(limit))
    group_1(until=left)
    watch.wait_for(lambda: bool(watch.of(0, "stale")), [stays])
    # Group 0 rests until group 1 has caught up.
    stays.send_signal(signal.SIGSTOP)
    group_1(until=left_again)
    stays.send_signal(signal.SIGCONT)
    run = finish(stays, folders[0])
    watch.stop()

    stale = [int(e.fields[1]) for e in watch.of(0, "stale")]
    swaps = [(int(e.fields[1]), int(e.fields[3])) for e in watch.of(0, "swap")]
    (back,) = [(int(e.fields[1]), int(e.fields[2])) for e in watch.of(0, "back")]
    print(
        f"group 1 left at update {left} and {left_again}; group 0 left it out from its own update "
        f"{' and '.join(map(str, stale))} on; used it again, with update {back[0]}, from its own "
        f"update {back[1]} on; swaps (its update, own update): {swaps}"
    )
    # To the very update: it served its last snapshot until then.
    assert stale == [left + limit + 1, left_again + limit + 1]
    assert back == swaps[-1]
    assert back[0] == left_again
    counted = peers(run)
    expected = dict.fromkeys(range(1, updates + 1), 1)
    first = swaps[0][1]
    for out_from, in_from in [(0, first), (stale[0], back[1]), (stale[1], updates)]:
        expected |= dict.fromkeys(range(out_from + 1, in_from + 1), 0)
    assert counted == expected


@pytest.mark.full
def test_without_a_limit_a_group_that_left_is_used_to_the_end(corpus, tmp_path):
    exchange = tmp_path / "exchange"
    leaves = start(corpus, tmp_path / "1", *flags(exchange, 1, 2, "--max-update", "60"))
    finish(leaves, tmp_path / "1")
    more = flags(exchange, 0, 2, *SLOW_MODEL, "--max-update", "400")
    run = finish(start(corpus, tmp_path / "0", *more), tmp_path / "0")
    assert "peer 1 first seen: update 60" in run.log
    assert peers(run)[400] == 1
