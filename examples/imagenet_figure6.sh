#!/usr/bin/env bash
# Less data (the paper's Figure 6): ResNet50 on 1/k of the images for k times the epochs, so with as
# many updates.  The paper's k are not told.
#
# Usage: imagenet_figure6.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-all_reduce resnet50-decayed resnet50-all_reduce-part2 resnet50-decayed-part2 resnet50-all_reduce-part4 resnet50-decayed-part4 resnet50-all_reduce-part8 resnet50-decayed-part8'
imagenet_options "$@"
all_reduce resnet50-all_reduce "all_reduce, all" all_reduce
codistilled resnet50-decayed "codistillation, all" decayed
for k in 2 4 8; do
    part=(--data-fraction "1/$k" --epochs-times "$k")
    all_reduce "resnet50-all_reduce-part$k" "all_reduce, 1/$k" all_reduce "${part[@]}"
    codistilled "resnet50-decayed-part$k" "codistillation, 1/$k" decayed "${part[@]}"
done
figure_report figure6
