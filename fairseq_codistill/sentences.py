"""How an adapter ends a process when the user has to act: one line, and a status that tells why."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fairseq_codistill import statuses
from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.exchange import ExchangeError
from fairseq_codistill.records import printable

# Characters of a sentence; what others wrote may be quoted in it.
LONGEST = 2000


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the process with one line on standard error in place of a traceback."""
    try:
        yield
    except (ConfigError, ExchangeError) as error:
        print(f"codistill: error: {printable(error, LONGEST)}", file=sys.stderr, flush=True)
        status = statuses.CONFIG if isinstance(error, ConfigError) else statuses.FAILED
        raise SystemExit(status) from error


@contextmanager
def exhaustion_is_final() -> Iterator[None]:
    """Let an exhausted GPU end the process, where all of a group's workers act together.

    fairseq passes over a batch that found no memory; what one worker has passed over, the others
    would wait for.

    Raises:
        ExchangeError: in place of what torch says.
    """
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        said = " ".join(str(error).split())
        raise ExchangeError(
            f"no memory for a snapshot ({said:.200}); lower --max-tokens, or let processes lock "
            "more memory (ulimit -l)"
        ) from error
