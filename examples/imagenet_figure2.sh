#!/usr/bin/env bash
# Codistillation with less explicit regularisation (the paper's Figures 2 and 8): weight decay falls
# at the drops of the learning rate, which come later.  ResNet50 and ResNeXt101.
#
# Usage: imagenet_figure2.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-all_reduce resnet50-decayed resnext101-all_reduce resnext101-decayed'
imagenet_options "$@"
all_reduce resnet50-all_reduce "ResNet50, all_reduce" all_reduce
codistilled resnet50-decayed "ResNet50, codistillation" decayed
# The paper does not tell which ResNeXt101.
all_reduce resnext101-all_reduce "ResNeXt101, all_reduce" all_reduce --arch resnext101_32x8d
codistilled resnext101-decayed "ResNeXt101, codistillation" decayed --arch resnext101_32x8d
figure_report figure2
