#!/usr/bin/env bash
# The paper's translation experiments at a size that fits two CPU cores: trains, translates the
# test set, and writes a table, plots and raw numbers for each experiment.
#
# Usage: run.sh --text DIR [OPTIONS]
#
#   --text DIR       a folder with train, valid and test in German and English (train.de,
#                    train.en, ...; .xz, .gz and .bz2 will do), as for prepare-text.sh
#   --only LIST      experiments, of T4 T2 T5 T3 T1 T10 T11 T7 T8 T6 T9 T13
#                    (default: all)
#   --out DIR        data and runs (default: runs/translation, of a trial runs/translation-trial)
#   --results DIR    tables, plots, raw numbers (default: OUT/results)
#   --trial          8 updates on 400 pairs, one seed: to see whether the machinery runs
#   --dry-run        only print the commands
#
#   T4  how alpha grows (the paper's Figure 17): 7 runs, by which to choose ALPHA and GROWTH
#   T2  a model too large for its data (the paper's IWSLT'14): 2 x 3 seeds
#   T3  how often to exchange (Figure 16): 3 x 3 seeds beside those of T2
#   T5  label smoothing and ensembles (Anil et al.): 2 x 3 seeds beside those of T2
#   T1  all_reduce against codistillation, with label smoothing and without (Figures 5 and 14), and
#       codistillation with less dropout: 5 x 3 seeds
#   T10 what T1 turns on: models of half the batch alone, twice the updates, and less dropout for
#       all_reduce too: 3 runs beside those of T1
#   T6  T4 with peers in eval mode: 9 runs
#   T7  cheaper codistillation: the term on every 2nd, 4th and 8th update only, and snapshots as
#       int8: 4 runs beside those of T1
#   T8  T2's codistillation for as many epochs as all_reduce, twice the updates, with alpha no
#       larger than at its end: 1 run
#   T11 the offset that all logits have in common, left out of the divergence: 2 runs beside those
#       of T3
#   T9  T1 with twice the pairs, which are too many for the updates: 3 runs
#   T13 LocalSGD in place of codistillation: T1's all_reduce, but two workers that average their
#       weights every T updates, T = 100 and 500, each with dropout 0.1, 0.2 and 0.3 by seed 1, and
#       then with the best of the three by all seeds: 2 x 5 runs beside all_reduce of T1
#
# In all but T6 peers drop out as the student does (--codistill-peer-dropout): T6 is why.
#
# About thirteen hours on two cores.  Run again, it passes over what is finished and goes on with
# what was cut off; a run of T13 that was cut off starts again.  Everything is in lockstep and in float32 on one thread a worker, so that the same
# command gives the same numbers on the same kind of machine.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/recipe.sh
source "$HERE/../../examples/recipe.sh"
# shellcheck source=results/publish.sh
source "$HERE/../publish.sh"

# Chosen by T4, on one seed, by the validation NLL, and frozen for the rest.
ALPHA=0.001 GROWTH=1.5
SEEDS=(1 2 3)
# Options of `codistill launch`, where an experiment has some.
LAUNCH=()

TEXT='' ONLY='T4 T2 T5 T3 T1 T10 T11 T7 T8 T6 T9 T13' OUT='' RESULTS='' TRIAL='' DRY_RUN=''
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --text | --only | --out | --results)
            given=$(value "${@:1:2}")
            case $1 in
                --text) TEXT=$given ;;
                --only) ONLY=$given ;;
                --out) OUT=$given ;;
                --results) RESULTS=$given ;;
            esac
            shift
            ;;
        --trial) TRIAL=1 && SEEDS=(1) ;;
        --dry-run) DRY_RUN=1 ;;
        *) die "unknown argument '$1'; --help says what there is." ;;
    esac
    shift
done
[[ -n $TEXT ]] || die "--text is missing; give the folder of the text, as --help says."
for experiment in $ONLY; do
    [[ $experiment =~ ^T([1-9]|1[013])$ ]] || die "--only $experiment is unknown; --help lists them."
done
OUT=${OUT:-runs/translation${TRIAL:+-trial}}
RESULTS=${RESULTS:-$OUT/results}
export OMP_NUM_THREADS=1

# --- what is trained ------------------------------------------------------------------------------

# over_parameterised: T2 to T5.  1.7 million parameters on 5,000 pairs, some 60,000 words of the
# target: 30 parameters a word, where the paper's big transformer has 50 on IWSLT'14.
over_parameterised() {
    PAIRS=5000 WIDTH=160 TOKENS=400 STEPS=3000 INTERVAL=50
    CHOSEN=over-gamma$GROWTH-alpha$ALPHA-interval$INTERVAL
    prepare
}

# plain: T1.  1.2 million parameters on 10,000 pairs, of which all_reduce sees 54 epochs.
plain() {
    PAIRS=10000 WIDTH=128 TOKENS=1000 STEPS=4000 INTERVAL=100
    CHOSEN=plain-gamma$GROWTH-alpha$ALPHA-interval$INTERVAL
    prepare
}

# plain_codistilled NAME SEED FLAG...: with alpha no larger than at the end of T4's runs, which have
# fewer epochs.
plain_codistilled() {
    codistilled "$1" $GROWTH $ALPHA "$INTERVAL" "${@:2}" --codistill-alpha-max 0.66
}

prepare() {
    local held_out=1000 vocabulary=2000
    if [[ -n $TRIAL ]]; then
        PAIRS=400 STEPS=8 held_out=50 vocabulary=200
    fi
    DATA=$OUT/data/$PAIRS SAVED=$((STEPS / 8 + 1))
    step "Preparing $PAIRS pairs" \
        bash "$REPO/data-bin-scripts/prepare-text.sh" "$TEXT" "$DATA" \
        --train-lines "$PAIRS" --held-out-lines "$held_out" --vocabulary "$vocabulary"
}

# run NAME GROUPS WORKERS SEED FLAG...: trains OUT/NAME-seedSEED, and translates with its models.
# Each has as many updates, of as many words a worker, as every other of its size.
run() {
    local name=$1-seed$4 groups=$2 workers=$3 seed=$4
    local out=$OUT/$name
    shift 4
    if [[ -z $DRY_RUN && -e $out/evaluation/scores.json ]]; then
        say "$name: already there"
        return
    fi
    step "$name" \
        codistill launch --groups "$groups" --workers-per-group "$workers" \
        --out "$out" "${LAUNCH[@]}" -- \
        fairseq-train "$DATA/data-bin" --source-lang de --target-lang en \
        --user-dir "$REPO/fairseq_codistill" \
        --task codistill_translation --criterion codistill_cross_entropy \
        --arch transformer --encoder-layers 2 --decoder-layers 2 \
        --encoder-embed-dim "$WIDTH" --decoder-embed-dim "$WIDTH" \
        --encoder-ffn-embed-dim $((4 * WIDTH)) --decoder-ffn-embed-dim $((4 * WIDTH)) \
        --encoder-attention-heads 4 --decoder-attention-heads 4 \
        --encoder-normalize-before --decoder-normalize-before --share-all-embeddings \
        --dropout 0.3 --weight-decay 0.0001 \
        --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
        --lr 0.002 --lr-scheduler inverse_sqrt --warmup-updates 400 --max-update "$STEPS" \
        --max-tokens "$TOKENS" --max-tokens-valid 8000 --required-batch-size-multiple 1 \
        --save-interval-updates "$SAVED" --keep-interval-updates 2 --no-epoch-checkpoints \
        --seed "$seed" --cpu --num-workers 0 --log-format json --log-interval 50 "$@"
    # The mean of the weights of models that began apart knows no end.
    step "$name: translating" \
        bash "$REPO/examples/evaluate.sh" "$out" --data "$DATA/data-bin" --pair de-en \
        --sentencepiece --best --groups "$groups" --cpu -- --max-len-a 2 --max-len-b 20
    [[ -n $DRY_RUN ]] || rm -rf "$out/exchange" "$out"/group-*/checkpoint_*_*.pt
}

# all_reduce NAME SEED FLAG...: one model on two workers.
all_reduce() {
    run "$1" 1 2 "${@:2}"
}

# codistilled NAME GAMMA ALPHA INTERVAL SEED FLAG...: two models on a worker each, whose peers drop
# out as they do.
codistilled() {
    codistilled_in_eval_mode "$@" --codistill-peer-dropout
}

codistilled_in_eval_mode() {
    # A resumed run may need the snapshots since the checkpoint before the last.
    run "$1-gamma$2-alpha$3-interval$4" 2 1 "$5" \
        --codistill-mode lockstep --codistill-interval "$4" \
        --codistill-keep $((2 * SAVED / $4 + 2)) \
        --codistill-alpha "$3" --codistill-alpha-growth "$2" "${@:6}"
}

# independent NAME SEED FLAG...: two models that know nothing of each other, on a worker each.
independent() {
    run "$1" 2 1 "$2" --codistill-alpha 0 "${@:3}"
}

# local_sgd NAME T SEED FLAG...: one model on two workers, which train by themselves and average their
# weights every T updates: fairseq's BMUF without block momentum.  Its warm-up would average nothing.
# Between two averages the workers' models differ, so that validation and checkpoints are at
# multiples of T only.  A checkpoint holds one worker's optimizer state, so a run that was cut off
# cannot go on: it starts again.
local_sgd() {
    local name=$1 interval=$2 seed=$3 LAUNCH=(--max-restarts 0 --hang-timeout 0)
    local out=$OUT/$name-seed$seed
    [[ -n $DRY_RUN || -e $out/group-0/finished.json ]] || rm -rf "$out"
    all_reduce "$name" "$seed" \
        --use-bmuf --block-momentum 0 --warmup-iterations 0 --global-sync-iter "$interval" \
        --save-interval-updates "$interval" --validate-interval-updates "$interval" \
        --save-interval 1000000 --validate-interval 1000000 "${@:4}"
}

# best NAME...: the one whose run of seed 1 has the lowest validation NLL; in a dry run the first.
best() {
    if [[ -n $DRY_RUN ]]; then
        printf '%s\n' "$1"
        return
    fi
    local run
    run=$(python "$HERE/best.py" "${@/%/-seed1}" --in "$OUT") || die "the best run is not known."
    printf '%s\n' "${run%-seed1}"
}

# --- the experiments ------------------------------------------------------------------------------

# The large gammas begin low: 16 epochs make 4.6 of 1 by 1.1, and 657 of 1 by 1.5.
T4() {
    over_parameterised
    grow codistilled over T4 1:0.1 1:0.3 1:1 1.1:0.1 1.1:0.3 1.5:0.001 1.5:0.003
}

T6() {
    over_parameterised
    grow codistilled_in_eval_mode over-eval T6 1:0.1 1:0.3 1:1 1.1:0.03 1.1:0.1 1.1:0.3 \
        1.5:0.0003 1.5:0.001 1.5:0.003
}

# grow TRAINING NAME EXPERIMENT GAMMA:ALPHA...: runs for each, one seed, and the report on them.
grow() {
    local training=$1 name=$2 experiment=$3 point rows=()
    for point in "${@:4}"; do
        local gamma=${point%:*} alpha=${point#*:}
        "$training" "$name" "$gamma" "$alpha" "$INTERVAL" 1
        rows+=("gamma $gamma, first alpha $alpha=$name-gamma$gamma-alpha$alpha-interval$INTERVAL-seed1")
    done
    publish "$experiment" "${rows[@]}"
}

T2() {
    local seed
    over_parameterised
    for seed in "${SEEDS[@]}"; do
        all_reduce over-all-reduce-smoothed "$seed" --label-smoothing 0.1
        codistilled over $GROWTH $ALPHA $INTERVAL "$seed"
    done
    publish T2 "all_reduce, smoothing 0.1=over-all-reduce-smoothed-seed?" \
        "codistillation=$CHOSEN-seed?"
}

T3() {
    local seed over=over-gamma$GROWTH-alpha$ALPHA
    over_parameterised
    for seed in "${SEEDS[@]}"; do
        codistilled over $GROWTH $ALPHA $INTERVAL "$seed"
        codistilled over $GROWTH $ALPHA 125 "$seed"
        codistilled over $GROWTH $ALPHA 1 "$seed"
        codistilled over $GROWTH $ALPHA 20 "$seed"
    done
    publish T3 "T = 1=$over-interval1-seed?" "T = 20=$over-interval20-seed?" \
        "T = $INTERVAL=$CHOSEN-seed?" "T = 125=$over-interval125-seed?"
}

T11() {
    local interval
    over_parameterised
    for interval in 20 $INTERVAL; do
        codistilled over $GROWTH $ALPHA "$interval" 1
        codistilled over-centered $GROWTH $ALPHA "$interval" 1 \
            --codistill-divergence centered-logit-mse
    done
    publish T11 "T = 20=over-gamma$GROWTH-alpha$ALPHA-interval20-seed1" \
        "T = 20, centered=over-centered-gamma$GROWTH-alpha$ALPHA-interval20-seed1" \
        "T = $INTERVAL=$CHOSEN-seed1" \
        "T = $INTERVAL, centered=${CHOSEN/over/over-centered}-seed1"
}

T5() {
    local seed
    over_parameterised
    for seed in "${SEEDS[@]}"; do
        codistilled over $GROWTH $ALPHA $INTERVAL "$seed"
        independent over-independent "$seed"
        independent over-independent-smoothed "$seed" --label-smoothing 0.1
    done
    publish T5 "independent=over-independent-seed?" \
        "independent, smoothing 0.1=over-independent-smoothed-seed?" \
        "codistilled=$CHOSEN-seed?"
}

T1() {
    local seed
    plain
    for seed in "${SEEDS[@]}"; do
        all_reduce plain-all-reduce-smoothed "$seed" --label-smoothing 0.1
        all_reduce plain-all-reduce "$seed"
        plain_codistilled plain "$seed"
        plain_codistilled plain-smoothed "$seed" --label-smoothing 0.1
        plain_codistilled plain-dropout0.1 "$seed" --dropout 0.1
    done
    publish T1 "all_reduce, smoothing 0.1=plain-all-reduce-smoothed-seed?" \
        "all_reduce=plain-all-reduce-seed?" \
        "codistillation=$CHOSEN-seed?" \
        "codistillation, smoothing 0.1=${CHOSEN/plain/plain-smoothed}-seed?" \
        "codistillation, dropout 0.1=${CHOSEN/plain/plain-dropout0.1}-seed?"
}

T10() {
    plain
    all_reduce plain-all-reduce-smoothed 1 --label-smoothing 0.1
    all_reduce plain-all-reduce 1
    plain_codistilled plain 1
    independent plain-independent 1
    plain_codistilled plain-long 1 --max-update $((2 * STEPS))
    all_reduce plain-all-reduce-smoothed-dropout0.1 1 --label-smoothing 0.1 --dropout 0.1
    plain_codistilled plain-dropout0.1 1 --dropout 0.1
    publish T10 "all_reduce, smoothing 0.1=plain-all-reduce-smoothed-seed1" \
        "all_reduce=plain-all-reduce-seed1" \
        "codistillation=$CHOSEN-seed1" \
        "independent=plain-independent-seed1" \
        "codistillation, twice the updates=${CHOSEN/plain/plain-long}-seed1" \
        "all_reduce, smoothing and dropout 0.1=plain-all-reduce-smoothed-dropout0.1-seed1" \
        "codistillation, dropout 0.1=${CHOSEN/plain/plain-dropout0.1}-seed1"
}

T7() {
    local every rows=()
    plain
    for every in 2 4 8; do
        plain_codistilled "plain-every$every" 1 --codistill-every "$every"
        rows+=("every update in $every=${CHOSEN/plain/plain-every$every}-seed1")
    done
    plain_codistilled plain-int8 1 --codistill-snapshot-dtype int8
    plain_codistilled plain 1
    publish T7 "codistillation=$CHOSEN-seed1" "${rows[@]}" \
        "int8 snapshots=${CHOSEN/plain/plain-int8}-seed1"
}

T8() {
    over_parameterised
    all_reduce over-all-reduce-smoothed 1 --label-smoothing 0.1
    codistilled over $GROWTH $ALPHA $INTERVAL 1
    codistilled over-long $GROWTH $ALPHA $INTERVAL 1 \
        --max-update $((2 * STEPS)) --codistill-alpha-max 0.66
    publish T8 "codistillation=$CHOSEN-seed1" \
        "twice the updates=${CHOSEN/over/over-long}-seed1" \
        "all_reduce, smoothing 0.1=over-all-reduce-smoothed-seed1"
}

T9() {
    PAIRS=20000 WIDTH=128 TOKENS=1000 STEPS=4500 INTERVAL=100
    prepare
    all_reduce larger-all-reduce-smoothed 1 --label-smoothing 0.1
    all_reduce larger-all-reduce 1
    codistilled larger $GROWTH $ALPHA $INTERVAL 1
    publish T9 "all_reduce, smoothing 0.1=larger-all-reduce-smoothed-seed1" \
        "all_reduce=larger-all-reduce-seed1" \
        "codistillation=larger-gamma$GROWTH-alpha$ALPHA-interval$INTERVAL-seed1"
}

T13() {
    local interval dropout seed chosen name rows=() intervals=(100 500)
    # A trial's few updates have to come to an average too.
    [[ -z $TRIAL ]] || intervals=(2 4)
    plain
    for interval in "${intervals[@]}"; do
        for dropout in 0.3 0.2 0.1; do
            name=plain-localsgd$interval-dropout$dropout
            local_sgd "$name" "$interval" 1 --label-smoothing 0.1 --dropout "$dropout"
            rows+=("LocalSGD, T = $interval, dropout $dropout=$name-seed?")
        done
    done
    for interval in "${intervals[@]}"; do
        chosen=$(best plain-localsgd"$interval"-dropout{0.3,0.2,0.1})
        for seed in "${SEEDS[@]}"; do
            local_sgd "$chosen" "$interval" "$seed" \
                --label-smoothing 0.1 --dropout "${chosen##*-dropout}"
        done
    done
    for seed in "${SEEDS[@]}"; do
        all_reduce plain-all-reduce-smoothed "$seed" --label-smoothing 0.1
    done
    publish T13 "all_reduce, smoothing 0.1=plain-all-reduce-smoothed-seed?" "${rows[@]}"
}

for experiment in $ONLY; do
    "$experiment"
done
