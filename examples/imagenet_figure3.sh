#!/usr/bin/env bash
# Larger batches (the paper's Figure 3 and Table A.2): each model with 128 to 2048 images an update,
# the learning rate in proportion, and as many epochs: half as many updates each time.
#
# A GPU has 32 images at a time and --update-freq makes the rest, but with 128 it has 16.  Models
# exchange twice an epoch, as with the paper's 256; the paper does not tell.  Its warm-up begins at
# 0.1 for every batch, which is above 128's peak of 0.05: here 128 has 0.05 from the beginning.
#
# Usage: imagenet_figure3.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-decayed-batch128 resnet50-decayed resnet50-decayed-batch512 resnet50-decayed-batch1024 resnet50-decayed-batch2048'
imagenet_options "$@"
BATCH=16 codistilled resnet50-decayed-batch128 "batch 128" decayed --codistill-interval 5000
codistilled resnet50-decayed "batch 256" decayed
for factor in 2 4 8; do
    batch=$((256 * factor))
    WORKERS=$((16 * factor)) codistilled "resnet50-decayed-batch$batch" "batch $batch" decayed \
        --codistill-interval $((2500 / factor))
done
figure_report figure3
