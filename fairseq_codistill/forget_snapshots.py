"""Remove a run's snapshots from given updates on; ``codistill launch`` starts this.

    python -m fairseq_codistill.forget_snapshots EXCHANGE RUN_ID GROUP:UPDATE...

removes of each group the snapshots of UPDATE and of all later updates, those of this run alone,
and prints a JSON object: for each group, how many they were.  No group may run meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from fairseq_codistill.exchange import Exchange, ExchangeError, Store, key_from


def main(arguments: Sequence[str]) -> None:
    """Remove the snapshots, and print how many they were."""
    try:
        address, run_id, *groups = arguments
        pairs = [pair.split(":") for pair in groups]
        asked = [(int(group), int(update)) for group, update in pairs]
    except ValueError:
        sys.exit(f"usage: python -m {__spec__.name} EXCHANGE RUN_ID GROUP:UPDATE...")
    try:
        exchange = Exchange(Store(address), run_id, key_from(os.environ))
        removed = {}
        for group, update in asked:
            updates = [manifest.update for manifest in exchange.above(group, update - 1)]
            exchange.remove(group, updates)
            removed[group] = len(updates)
    except (ExchangeError, OSError, ValueError) as error:
        sys.exit(f"{address}: {error}")
    print(json.dumps(removed))


if __name__ == "__main__":
    main(sys.argv[1:])
