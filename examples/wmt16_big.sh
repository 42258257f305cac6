#!/usr/bin/env bash
# WMT'16 English-German with the "big" transformer (the paper's Figures 5 and 14): codistillation
# without label smoothing, or its twin, all_reduce with label smoothing 0.1.
#
# Usage: wmt16_big.sh [OPTIONS] [-- FLAGS OF FAIRSEQ-TRAIN...]
#
#   --gpus N        GPUs in all, of this machine; they stand in for the recipe's 128 by
#                   --update-freq (default: 8)
#   --groups N      models that codistil (default: 2)
#   --all-reduce    the twin: one model on all GPUs, with label smoothing
#   --full-batch    give each model the recipe's batch, not its share of it: of two models each
#                   then makes twice the epochs in as many updates, and so has another alpha,
#                   which grows by the epoch
#   --data DIR      binarised data (default: data-bin/wmt16_en_de_bpe32k)
#   --out DIR       checkpoints, logs, exchange
#                   (default: runs/wmt16_big/codistillation-seed1, -full-batch-seed1,
#                   -4-models-seed1 and so on, or all_reduce-seed1)
#   --seed S        of the first model (default: 1)
#   --precision P   fp16, bf16, amp or fp32 (default: fp16, as in the recipe)
#   --cpu           CPU workers in place of GPUs; for a trial with a small model
#   --dry-run       only print the commands
#   --arguments     only print what fairseq-train would be given, one a line, for other schedulers
#
# The settings are those of Ott et al. (2018) for 128 GPUs: 128 x 3584 tokens an update, learning
# rate 0.001, 4000 updates of warm-up; 18,000 updates, as in the paper's plots.  recipe.sh says
# what a fair comparison holds fixed.  Run again, it goes on where it was.  Flags after -- are
# added to fairseq's and win, so `-- --label-smoothing 0.1` is codistillation with smoothing.
# Each group keeps 12 checkpoints, some 30 GB.
#
# More GPUs than one machine has: slurm/README.md.
set -euo pipefail

# shellcheck source=examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=wmt16_big WORKERS=128 TOKENS=3584 SMOOTHING=0.1
GPUS=8 DATA=data-bin/wmt16_en_de_bpe32k PRECISION=fp16
recipe_options "$@"

# The paper's gamma; its first alpha is not given.  A group sees some 26 epochs, so that 0.1 ends
# near 1.1 and the cap is for longer runs.  Not tuned: sweep_alpha.sh is for that.
# Why peers drop out: results/translation, T6.
CODISTILL=(
    --codistill-interval 2500
    --codistill-alpha 0.1 --codistill-alpha-growth 1.1 --codistill-alpha-max 2
    --codistill-peer-dropout
)

# The recipe averages the last ten epochs' checkpoints.  An epoch of all_reduce has some 350
# updates and one of a group twice as many: by updates, both average the same stretch.
train \
    --source-lang en --target-lang de \
    --arch transformer_vaswani_wmt_en_de_big --share-all-embeddings \
    --dropout 0.3 --weight-decay 0.0 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 \
    --lr 0.001 --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07 \
    --max-update 18000 \
    --save-interval-updates 360 --keep-interval-updates 10 --no-epoch-checkpoints
then_evaluate
