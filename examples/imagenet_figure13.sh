#!/usr/bin/env bash
# The size of alpha (the paper's Figure 13): ResNet50, two models, alpha constant.  The paper's
# values are not told.
#
# Usage: imagenet_figure13.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-decayed-alpha0.1 resnet50-decayed-alpha0.5 resnet50-decayed-alpha1 resnet50-decayed-alpha2 resnet50-decayed-alpha5'
imagenet_options "$@"
for alpha in 0.1 0.5 1 2 5; do
    codistilled "resnet50-decayed-alpha$alpha" "alpha $alpha" decayed \
        --codistill-alpha $alpha --codistill-alpha-schedule constant
done
figure_report figure13
