#!/usr/bin/env bash
# What the weight decay does (the paper's Figure 12): the shifted schedule with a constant one, and
# with the falling one of Figure 2.
#
# Usage: imagenet_figure12.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-all_reduce resnet50-decayed resnet50-shifted'
imagenet_options "$@"
all_reduce resnet50-all_reduce "all_reduce" all_reduce
codistilled resnet50-decayed "codistillation, falling weight decay" decayed
codistilled resnet50-shifted "codistillation, constant weight decay" shifted
figure_report figure12
