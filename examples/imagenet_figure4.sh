#!/usr/bin/env bash
# The cosine schedule (the paper's Figures 4 and 11): ResNet50 and ResNeXt101.
#
# Usage: imagenet_figure4.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-cosine-all_reduce resnet50-cosine resnext101-cosine-all_reduce resnext101-cosine'
imagenet_options "$@"
for arch in resnet50 resnext101_32x8d; do
    model=${arch%%_*}
    all_reduce "$model-cosine-all_reduce" "$model, all_reduce" cosine_all_reduce --arch $arch
    codistilled "$model-cosine" "$model, codistillation" cosine --arch $arch
done
figure_report figure4
