#!/usr/bin/env bash
# How often to exchange, and the learning rate (the paper's Figures 7 and 15): ResNet50, two models.
# The paper names base learning rates of 0.1 and 0.2 and "beyond".  Of the learning rates it says
# that the setup is Goyal's; taken here as in its other figures, with later milestones and a falling
# weight decay.
#
# Usage: imagenet_figure7.sh [OPTIONS] [-- FLAGS OF TRAINING...]
set -euo pipefail

# shellcheck source=examples/vision_recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/vision_recipe.sh"

NAMES='resnet50-decayed resnet50-decayed-interval5000 resnet50-decayed-interval1250 resnet50-decayed-interval625 resnet50-decayed-lr0.2 resnet50-decayed-lr0.4 resnet50-decayed-lr0.8'
imagenet_options "$@"
codistilled resnet50-decayed "every 2500 updates, learning rate 0.1" decayed
for interval in 5000 1250 625; do
    codistilled "resnet50-decayed-interval$interval" "every $interval updates" decayed \
        --codistill-interval $interval
done
for rate in 0.2 0.4 0.8; do
    codistilled "resnet50-decayed-lr$rate" "learning rate $rate" decayed --lr $rate
done
figure_report figure7
