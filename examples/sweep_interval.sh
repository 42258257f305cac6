#!/usr/bin/env bash
# How often to exchange (the paper's Figure 16): the same codistilled run with several intervals,
# one after the other.
#
# Usage: sweep_interval.sh [OPTIONS] [-- FLAGS OF FAIRSEQ-TRAIN...]
#
#   --recipe NAME       wmt16_big or iwslt14_big (default: wmt16_big)
#   --intervals LIST    updates between two exchanges (default: 2.5 times less often than the
#                       recipe, as often, and 2.5 times more often: "6250 2500 1000" for
#                       wmt16_big, "2500 1000 400" for iwslt14_big)
#   --out DIR           (default: runs/sweep_interval/RECIPE, RECIPE-full-batch and so on)
#   --gpus N, --groups N, --full-batch, --data DIR, --seed S, --precision P, --cpu, --dry-run
#                       as for the recipe
#
# Run again, it passes over what is finished and goes on with what is not; with another --seed it
# adds runs beside the others.
set -euo pipefail

# shellcheck source=examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

OPTION=--intervals POINTS=''
sweep_options "$@"
if [[ -z $POINTS && $RECIPE == wmt16_big ]]; then
    POINTS="6250 2500 1000"
elif [[ -z $POINTS ]]; then
    POINTS="2500 1000 400"
fi
read -ra POINTS <<<"$POINTS"
for interval in "${POINTS[@]}"; do
    number --intervals "$interval" >/dev/null
done
for interval in "${POINTS[@]}"; do
    sweep_point "interval-$interval" "T = $interval" --codistill-interval "$interval"
done
sweep_report
