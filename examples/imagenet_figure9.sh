#!/usr/bin/env bash
# Deeper networks (the paper's Figures 9 and 10): ResNet152 and ResNeXt152.
#
# Usage: imagenet_figure9.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet152-all_reduce resnet152-decayed resnext152-all_reduce resnext152-decayed'
imagenet_options "$@"
# The paper does not tell which ResNeXt152; resnext152_32x4d is here, too.
for arch in resnet152 resnext152_32x8d; do
    model=${arch%%_*}
    all_reduce "$model-all_reduce" "$model, all_reduce" all_reduce --arch $arch
    codistilled "$model-decayed" "$model, codistillation" decayed --arch $arch
done
figure_report figure9
