"""Map a function over lines in several processes."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

# Lines that a process gets at a time: enough to make the hand-over cheap.
CHUNK = 2000
# Chunks for each process in one round: the text is read round by round, not all at once.
CHUNKS = 8


def map_in_processes(
    function: Callable[[str], str],
    lines: Iterable[str],
    workers: int,
    start: Callable[..., None],
    arguments: tuple[object, ...],
) -> Iterator[str]:
    """Yield function(line) of every line in order, from processes that `start` was called in."""
    rest = iter(lines)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, start, arguments) as pool:
        while lines_of_round := list(islice(rest, CHUNK * CHUNKS * workers)):
            yield from pool.map(function, lines_of_round, chunksize=CHUNK)
