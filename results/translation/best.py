"""Which of several runs has the lowest validation NLL, each at its best.

python results/translation/best.py --in FOLDER NAME...

Prints the name of that run; of equal ones, the first.  A run of several models counts by their
mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from fairseq_codistill.errors import UserError
from fairseq_codistill.report import figures, runs


def best_nll(run: Path) -> float:
    """Return the mean over a run's models of the lowest validation NLL of each.

    Raises:
        UserError: if there is no such run, or a model of it has no finite validation NLL.
    """
    values = [figures.measure(model.log).best_nll for model in runs.find(str(run)).models]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise UserError(f"{run} has a model without a validation NLL; train it to its end first")
    return fmean(known)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the name of the best run; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--in", dest="folder", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(argv)
    try:
        print(min(options.names, key=lambda name: best_nll(options.folder / name)))
    except UserError as error:
        print(f"best.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
