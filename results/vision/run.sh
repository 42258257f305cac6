#!/usr/bin/env bash
# The paper's image experiments at a size that fits two CPU cores: trains small residual networks on
# 6,250 images of CIFAR-10, and writes a table, plots and raw numbers for each experiment.
#
# Usage: run.sh --data DIR [OPTIONS]
#
#   --data DIR       CIFAR-10 as folders: train/ and test/, in each a folder for each class
#   --only LIST      experiments, of V1 to V9 (default: all, in the order below)
#   --out DIR        runs (default: runs/vision, of a trial runs/vision-trial)
#   --results DIR    tables, plots, raw numbers (default: OUT/results)
#   --trial          5 updates, one seed: to see whether the machinery runs
#   --dry-run        only print the commands
#
#   V1  out of the box (the paper's Figure 1): 2 x 3 seeds
#   V2  a falling weight decay and a later schedule (Figure 2), the later schedule alone (Figure
#       12), and the first without peers: 3 x 3 seeds beside those of V1
#   V5  all, 1/2, 1/4 and 1/8 of the images (Figure 6): 2 x 3 x 3 seeds beside those of V1 and V2
#   V3  batch x1, x2, x4 (Figure 3, Table A.2), with the paper's alpha and with a tenth of it: 5 runs
#       beside those of V2
#   V4  cosine schedule (Figure 4), codistillation with both alphas: 3 runs
#   V6  how often to exchange (Figure 7a), with the smaller alpha: 3 runs beside those of V3
#   V8  alpha (Figure 13): 3 runs beside those of V2 and V3
#   V9  predictions against checkpoints: 1 run beside those of V2
#   V7  learning rate (Figure 7b), with the smaller alpha: 3 runs beside those of V3
#
# About three hours on two cores.  Run again, it passes over what is finished and goes on
# with what was cut off.  Checkpoint exchange is in lockstep, and everything in float32 on one thread
# a worker, so that the same command gives the same numbers on the same kind of machine.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/vision_recipe.sh
source "$HERE/../../examples/vision_recipe.sh"
# shellcheck source=results/publish.sh
source "$HERE/../publish.sh"

# One model on two workers with 64 images each, or two models on one worker each: recipes of
# config/vision/cifar10, which say the rest.
RECIPES=$EXAMPLES/config/vision/cifar10 WORKERS=2 BATCH=64 GPUS=2
SEEDS=(1 2 3) DEVICE_FLAGS=() EXTRA=()

DATA='' ONLY='V1 V2 V5 V3 V4 V6 V8 V9 V7' OUT='' RESULTS='' TRIAL='' DRY_RUN=''
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --data | --only | --out | --results)
            given=$(value "${@:1:2}")
            case $1 in
                --data) DATA=$given ;;
                --only) ONLY=$given ;;
                --out) OUT=$given ;;
                --results) RESULTS=$given ;;
            esac
            shift
            ;;
        --trial) TRIAL=1 && SEEDS=(1) && BATCH=4 && EXTRA=(--max-update 5 --log-interval 1) ;;
        --dry-run) DRY_RUN=1 ;;
        *) die "unknown argument '$1'; --help says what there is." ;;
    esac
    shift
done
[[ -n $DATA ]] || die "--data is missing; give the folder of the images, as --help says."
for experiment in $ONLY; do
    [[ $experiment =~ ^V[1-9]$ ]] || die "--only $experiment is unknown; --help lists them."
done
EXPERIMENTS=$ONLY ONLY=''
OUT=${OUT:-runs/vision${TRIAL:+-trial}}
RESULTS=${RESULTS:-$OUT/results}
export OMP_NUM_THREADS=1

# each KIND NAME RECIPE FLAG...: the run for every seed.
each() {
    for SEED in "${SEEDS[@]}"; do
        "one_$1" "${@:2}"
    done
}

# once KIND NAME RECIPE FLAG...: for the first seed alone.
once() {
    SEED=1
    "one_$1" "${@:2}"
}

one_all_reduce() {
    all_reduce "$1" "$1" "${@:2}"
    tidy
}

one_codistilled() {
    # The paper's alpha, which is not the default for ten classes; flags behind it win.
    codistilled "$1" "$1" "$2" --codistill-alpha 1 "${@:3}"
    agreement "$1"
    tidy
}

one_predicting() {
    predicting "$1" "$1" "$2" --codistill-alpha 1 "${@:3}"
    agreement "$1"
    tidy
}

# agreement NAME: how often the two models of the last run give a validation image the same class.
agreement() {
    [[ ! -e $RUN/agreement.jsonl ]] || return 0
    step "$1: agreement" python -m fairseq_codistill.vision.diagnostics --cpu --data "$DATA" \
        --out "$RUN/agreement.jsonl" "$RUN"/group-{0,1}/checkpoint_last.pt
}

# retrains EXPERIMENT NAME...: how often models of two seeds give a validation image the same class.
retrains() {
    local name said models
    for name in "${@:2}"; do
        said=$RESULTS/$1/retrains-$name.jsonl
        [[ ! -e $said ]] || continue
        # shellcheck disable=SC2206 # the pattern is to be expanded
        models=($OUT/$name-seed?/group-0/checkpoint_last.pt)
        step "$1: $name, seeds compared" python -m fairseq_codistill.vision.diagnostics --cpu \
            --data "$DATA" --out "$said" "${models[@]}"
    done
}

tidy() {
    [[ -n $DRY_RUN ]] || rm -rf "$RUN/exchange" "$RUN"/group-*/checkpoint_best.pt
}

# --- the experiments ------------------------------------------------------------------------------

CONSTANT=(--codistill-alpha-schedule constant)
# Each model by itself: what a group's smaller batch makes without codistillation.
WITHOUT_PEERS=(--codistill-alpha 0 "${CONSTANT[@]}")
# D is a mean over the classes, so with 10 of them its gradient is sqrt(100) times as long as with
# ImageNet's 1000 for logits as far apart: this much here weighs as the paper's 1.
WEAK=(--codistill-alpha 0.1 "${CONSTANT[@]}")

# The epochs of a group have 97 updates; T = 48 is twice an epoch, as in the paper.

V1() {
    each all_reduce all_reduce all_reduce
    each codistilled halved halved
    publish V1 "all_reduce=all_reduce-seed?" "codistillation, out of the box=halved-seed?"
}

V2() {
    each all_reduce all_reduce all_reduce
    each codistilled decayed decayed
    each codistilled shifted shifted
    each codistilled decayed-alpha0 decayed "${WITHOUT_PEERS[@]}"
    publish V2 "all_reduce=all_reduce-seed?" \
        "codistillation, falling weight decay=decayed-seed?" \
        "codistillation, constant weight decay=shifted-seed?" \
        "falling weight decay, without peers=decayed-alpha0-seed?"
    retrains V2 all_reduce decayed decayed-alpha0
}

V3() {
    local factor batch rows=() weak=()
    once codistilled decayed decayed
    once codistilled decayed-alpha0.1 decayed "${WEAK[@]}"
    for factor in 2 4; do
        # As many exchanges an epoch.
        batch=(--update-freq "$factor" --codistill-interval $((48 / factor)))
        once codistilled "decayed-batch$factor" decayed "${batch[@]}"
        once codistilled "decayed-batch$factor-alpha0.1" decayed "${batch[@]}" "${WEAK[@]}"
        rows+=("batch x$factor=decayed-batch$factor-seed1")
        weak+=("batch x$factor, alpha 0.1=decayed-batch$factor-alpha0.1-seed1")
    done
    publish V3 "batch x1=decayed-seed1" "${rows[@]}" \
        "batch x1, alpha 0.1=decayed-alpha0.1-seed1" "${weak[@]}"
}

V4() {
    once all_reduce cosine-all_reduce cosine_all_reduce
    once codistilled cosine cosine
    once codistilled cosine-alpha0.1 cosine "${WEAK[@]}"
    publish V4 "all_reduce=cosine-all_reduce-seed1" "codistillation=cosine-seed1" \
        "codistillation, alpha 0.1=cosine-alpha0.1-seed1"
}

V5() {
    local k rows=()
    each all_reduce all_reduce all_reduce
    each codistilled decayed decayed
    for k in 2 4 8; do
        # The recipes have 1/8 of CIFAR-10 as all.
        local part=(--data-fraction "1/$((8 * k))" --epochs-times "$k")
        each all_reduce "all_reduce-part$k" all_reduce "${part[@]}"
        each codistilled "decayed-part$k" decayed "${part[@]}"
        rows+=("all_reduce, 1/$k=all_reduce-part$k-seed?")
        rows+=("codistillation, 1/$k=decayed-part$k-seed?")
    done
    publish V5 "all_reduce, all=all_reduce-seed?" "codistillation, all=decayed-seed?" "${rows[@]}"
    retrains V5 all_reduce-part8 decayed-part8
}

V6() {
    local interval rows=()
    once codistilled decayed-alpha0.1 decayed "${WEAK[@]}"
    for interval in 96 24 12; do
        once codistilled "decayed-alpha0.1-interval$interval" decayed "${WEAK[@]}" \
            --codistill-interval "$interval"
        rows+=("T = $interval=decayed-alpha0.1-interval$interval-seed1")
    done
    publish V6 "T = 48=decayed-alpha0.1-seed1" "${rows[@]}"
}

V7() {
    local rate rows=()
    once codistilled decayed-alpha0.1 decayed "${WEAK[@]}"
    for rate in 0.1 0.2 0.4; do
        once codistilled "decayed-alpha0.1-lr$rate" decayed "${WEAK[@]}" --lr "$rate"
        rows+=("learning rate $rate=decayed-alpha0.1-lr$rate-seed1")
    done
    publish V7 "learning rate 0.05=decayed-alpha0.1-seed1" "${rows[@]}"
}

V8() {
    local alpha rows=("alpha 0=decayed-alpha0-seed1")
    once codistilled decayed-alpha0 decayed "${WITHOUT_PEERS[@]}"
    for alpha in 0.1 0.3 1 3; do
        once codistilled "decayed-alpha$alpha" decayed --codistill-alpha "$alpha" "${CONSTANT[@]}"
        rows+=("alpha $alpha=decayed-alpha$alpha-seed1")
    done
    publish V8 "${rows[@]}"
}

V9() {
    once codistilled decayed decayed
    once predicting predictions decayed
    publish V9 "checkpoints=decayed-seed1" "predictions=predictions-seed1"
}

for experiment in $EXPERIMENTS; do
    "$experiment"
done
