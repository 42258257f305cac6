#!/usr/bin/env bash
# How alpha grows (the paper's Figure 17): the same codistilled run with several factors gamma by
# which alpha grows from epoch to epoch, and for each several first alphas, one after the other.
#
# Usage: sweep_alpha.sh [OPTIONS] [-- FLAGS OF FAIRSEQ-TRAIN...]
#
#   --recipe NAME       wmt16_big or iwslt14_big (default: wmt16_big)
#   --points LIST       GAMMA:ALPHA... (default: "1:0.1 1:0.3 1:1 1.1:0.03 1.1:0.1 1.1:0.3
#                       1.5:0.0001 1.5:0.001 1.5:0.01")
#   --out DIR           (default: runs/sweep_alpha/RECIPE, RECIPE-full-batch and so on)
#   --gpus N, --groups N, --full-batch, --data DIR, --seed S, --precision P, --cpu, --dry-run
#                       as for the recipe
#
# The paper gives the gammas, and says that it tuned the first alpha for each; the ones above are
# ours.  After 25 epochs 1.1 makes 10.8 of 1, and 1.5 makes 25,251 of it, so the larger gamma is, the
# smaller the first alpha; the recipe's cap, 2, stays.  Choose by the best validation NLL.
#
# Run again, it passes over what is finished and goes on with what is not; with another --seed it
# adds runs beside the others.
set -euo pipefail

# shellcheck source=examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

OPTION=--points
POINTS="1:0.1 1:0.3 1:1 1.1:0.03 1.1:0.1 1.1:0.3 1.5:0.0001 1.5:0.001 1.5:0.01"
sweep_options "$@"
read -ra POINTS <<<"$POINTS"
for point in "${POINTS[@]}"; do
    [[ $point =~ ^[0-9.]+:[0-9.e-]+$ ]] ||
        die "--points $point is no GAMMA:ALPHA; write it as in 1.1:0.1."
done
for point in "${POINTS[@]}"; do
    gamma=${point%:*} alpha=${point#*:}
    sweep_point "gamma-$gamma-alpha-$alpha" "gamma $gamma, first alpha $alpha" \
        --codistill-alpha-growth "$gamma" --codistill-alpha "$alpha"
done
sweep_report
