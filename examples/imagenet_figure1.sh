#!/usr/bin/env bash
# Codistillation out of the box (the paper's Figure 1): ResNet50 by all_reduce on all workers, and
# two models with Goyal's schedule halved and nothing else changed.  The distance of the parameters
# from where they began (Figure 1c) is `distance` in the logs, once an epoch.
#
# Usage: imagenet_figure1.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-all_reduce resnet50-halved'
imagenet_options "$@"
all_reduce resnet50-all_reduce "all_reduce" all_reduce
codistilled resnet50-halved "codistillation, out of the box" halved
figure_report figure1
