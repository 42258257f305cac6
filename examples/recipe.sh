# shellcheck shell=bash
# shellcheck disable=SC2153,SC2034  # the script that sources this sets WORKERS, TOKENS; reads POINTS
# What the scripts for the paper's translation runs share: options, the arithmetic of the
# comparison, and the line that starts.  To be sourced by a script whose head comment is its help.
#
# The comparison.  The paper holds three things fixed between all_reduce and n codistilling groups:
# the total number of workers, the batch of each worker, and the number of updates.  So a recipe
# written for one model on W workers (W x TOKENS tokens an update) becomes n models on W / n
# workers each: a model sees 1/n of the recipe's batch in an update, and all models together see
# the recipe's batch.  That is the default here, for the paper says of its ImageNet runs that two
# models with batch 256 each stand against one with batch 512, on the same 16 GPUs, and calls the
# constraint "particularly important"; of translation it says only that it is set up alike.
# Learning rate and warm-up stay the recipe's in both: the paper names no others.
#
# Fewer GPUs than W stand in for W by --update-freq, which is the same in both, too.
#
# --full-batch is the other reading: each model by itself gets the recipe's batch, so that n models
# cost n times the computation.  In as many updates a model then makes n times as many epochs, and as
# alpha grows by the epoch, it is another one, too.

EXAMPLES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$EXAMPLES")
# shellcheck source=data-bin-scripts/stages.sh
source "$REPO/data-bin-scripts/stages.sh"

# --- options, of evaluation and sweeps too -----------------------------------------------------

# value OPTION [VALUE]: the value, or what to do if it is missing.
value() {
    (($# > 1)) || die "$1 needs a value; --help says which."
    printf '%s' "$2"
}

# number OPTION VALUE: the value, if it is a whole number from 1 on.
number() {
    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1 $2 is no number; give a whole one from 1 on."
    printf '%s' "$2"
}

# variant: what tells the default directory of a run from the one of two models that share the
# recipe's batch.  Reads MODELS and FULL_BATCH.
variant() {
    ((MODELS == 2)) || printf -- '-%d-models' "$MODELS"
    [[ -z $FULL_BATCH ]] || printf -- '-full-batch'
}

# --- training ----------------------------------------------------------------------------------

# recipe_options ARGUMENT...: reads the options of a training script.  Before it, the script sets
# NAME, WORKERS (of the recipe), TOKENS (a worker's in one pass) and the defaults of GPUS, DATA and
# PRECISION.  Sets these and the rest.
recipe_options() {
    MODELS=2 ALL_REDUCE='' FULL_BATCH='' OUT='' SEED=1 CPU='' DRY_RUN='' ARGUMENTS=''
    EXTRA=()
    local models='' given
    while (($#)); do
        case $1 in
            -h | --help) usage && exit ;;
            --gpus | --groups | --seed | --data | --out | --precision)
                given=$(value "${@:1:2}")
                case $1 in
                    --gpus) GPUS=$(number "$@") ;;
                    --groups) models=$(number "$@") ;;
                    --seed) SEED=$(number "$@") ;;
                    --data) DATA=$given ;;
                    --out) OUT=$given ;;
                    --precision) PRECISION=$given ;;
                esac
                shift
                ;;
            --all-reduce) ALL_REDUCE=1 ;;
            --full-batch) FULL_BATCH=1 ;;
            --cpu) CPU=1 ;;
            --dry-run) DRY_RUN=1 ;;
            --arguments) ARGUMENTS=1 ;;
            --) EXTRA=("${@:2}") && break ;;
            *) die "unknown argument '$1'; --help says what there is, flags of fairseq go after --." ;;
        esac
        shift
    done
    case $PRECISION in
        fp16 | bf16 | amp) PRECISION_FLAG=(--"$PRECISION") ;;
        fp32) PRECISION_FLAG=() ;;
        *) die "--precision $PRECISION is unknown; give fp16, bf16, amp or fp32." ;;
    esac
    # Half precision is for GPUs.
    [[ -z $CPU ]] || PRECISION_FLAG=(--cpu)
    if [[ -n $ALL_REDUCE ]]; then
        [[ -z $models || $models == 1 ]] ||
            die "--groups $models and --all-reduce exclude each other; leave out one of them."
        MODELS=1
    elif [[ $models == 1 ]]; then
        die "--groups 1 has nobody to learn from; give 2 or more, or --all-reduce for one model."
    else
        MODELS=${models:-$MODELS}
    fi
    local kind
    kind=codistillation$(variant)
    # One model has the recipe's batch anyway.
    [[ -z $ALL_REDUCE ]] || kind=all_reduce
    OUT=${OUT:-runs/$NAME/$kind-seed$SEED}
}

# work_out: sets GROUP_WORKERS and UPDATE_FREQ, or says why GPUS cannot be used.
work_out() {
    local workers=$WORKERS gpus fitting=''
    [[ -z $FULL_BATCH ]] || workers=$((WORKERS * MODELS))
    for ((gpus = MODELS; gpus <= workers; gpus += MODELS)); do
        ((workers % gpus)) || fitting+=" $gpus"
    done
    [[ -n $fitting ]] ||
        die "--groups $MODELS cannot share the recipe's $workers workers evenly;" \
            "give another number of groups, or --full-batch."
    ((GPUS % MODELS == 0)) ||
        die "--gpus $GPUS does not divide into $MODELS groups; give one of$fitting."
    ((workers % GPUS == 0)) ||
        die "--gpus $GPUS does not divide $workers workers, so no --update-freq gives the" \
            "recipe's batch; give one of$fitting."
    GROUP_WORKERS=$((GPUS / MODELS))
    UPDATE_FREQ=$((workers / GPUS))
}

# describe: the arithmetic, for people.
describe() {
    local tokens=$((GROUP_WORKERS * UPDATE_FREQ * TOKENS))
    printf '# %d model(s) on %d worker(s) each, --update-freq %d, %d tokens a worker and pass:\n' \
        "$MODELS" "$GROUP_WORKERS" "$UPDATE_FREQ" "$TOKENS"
    printf '# %d tokens an update for each model, %d for all; the recipe: %d x %d = %d\n' \
        "$tokens" $((tokens * MODELS)) "$WORKERS" "$TOKENS" $((WORKERS * TOKENS))
}

# train FLAG...: starts, or prints, the run with the recipe's own flags.  Before it, the script
# sets SMOOTHING, of all_reduce, and CODISTILL, the flags of codistillation.
#
# all_reduce is a single group of the same task: it trains as fairseq's `translation` with
# `label_smoothed_cross_entropy` does, and its log and its restarts are those of codistillation.
# In both, validation and checkpoint_best.pt go by the plain NLL.
#
# --required-batch-size-multiple stays at the recipe's 8.  With ve-fairseq 0.12.3 an epoch and a
# validation thereby lack the last (n mod 8) sentences: none of newstest2013's 3,000, 3 of the
# 7,283 of IWSLT's.  evaluate.sh, whose figures are published, leaves out none.
train() {
    local own arguments
    work_out
    if [[ -n $ALL_REDUCE ]]; then
        own=(--label-smoothing "$SMOOTHING")
    else
        own=(--label-smoothing 0 "${CODISTILL[@]}")
    fi
    arguments=(
        "$DATA" --user-dir "$REPO/fairseq_codistill"
        --task codistill_translation --criterion codistill_cross_entropy
        "$@" "${own[@]}" --max-tokens "$TOKENS" --update-freq "$UPDATE_FREQ" --seed "$SEED"
        "${PRECISION_FLAG[@]}" --log-format json --log-interval 50 "${EXTRA[@]}"
    )
    if [[ -n $ARGUMENTS ]]; then
        printf '%s\n' "${arguments[@]}"
        exit
    fi
    describe
    step "Training in $OUT" \
        codistill launch --groups "$MODELS" --workers-per-group "$GROUP_WORKERS" --out "$OUT" -- \
        fairseq-train "${arguments[@]}"
}

# then_evaluate OPTION...: tells the line that evaluates the run.
then_evaluate() {
    [[ -z $CPU ]] || set -- "$@" --cpu
    print_command "Then, to evaluate it:" \
        bash "$EXAMPLES/evaluate.sh" --data "$DATA" --groups "$MODELS" "$@" "$OUT"
}

# --- sweeps -------------------------------------------------------------------------------------

# sweep_options ARGUMENT...: reads the options of a sweep, which are those of a training script and
# two more; the former are kept in PASS_ON, and fairseq's flags in EXTRA.  Before it, the script
# sets OPTION, the name of its list of points, and POINTS, the list by default.
sweep_options() {
    RECIPE=wmt16_big OUT='' SEED=1 DRY_RUN='' MODELS=2 FULL_BATCH=''
    PASS_ON=() EXTRA=()
    local given
    while (($#)); do
        case $1 in
            -h | --help) usage && exit ;;
            --recipe | "$OPTION" | --gpus | --groups | --seed | --data | --out | --precision)
                given=$(value "${@:1:2}")
                case $1 in
                    --recipe) RECIPE=$given ;;
                    "$OPTION") POINTS=$given ;;
                    --out) OUT=$given ;;
                    --seed) SEED=$(number "$@") ;;
                    --groups)
                        # Not one list of commands: set -e would not see that the first one failed.
                        MODELS=$(number "$@")
                        PASS_ON+=("$1" "$given")
                        ;;
                    *) PASS_ON+=("$1" "$given") ;;
                esac
                shift
                ;;
            --dry-run) DRY_RUN=1 && PASS_ON+=("$1") ;;
            --full-batch) FULL_BATCH=1 && PASS_ON+=("$1") ;;
            --cpu) PASS_ON+=("$1") ;;
            --) EXTRA=("${@:2}") && break ;;
            *) die "unknown argument '$1'; --help says what there is, flags of fairseq go after --." ;;
        esac
        shift
    done
    [[ $RECIPE == wmt16_big || $RECIPE == iwslt14_big ]] ||
        die "--recipe $RECIPE is unknown; give wmt16_big or iwslt14_big."
    OUT=${OUT:-runs/$(basename "$0" .sh)/$RECIPE$(variant)}
    REPORTED=()
}

# sweep_point NAME LABEL FLAG...: the run OUT/NAME-seedS of the recipe with these flags of
# fairseq.  What is finished is done at once, for launch remembers it.
sweep_point() {
    local run=$OUT/$1-seed$SEED
    bash "$EXAMPLES/$RECIPE.sh" --seed "$SEED" --out "$run" "${PASS_ON[@]}" -- \
        "${@:3}" "${EXTRA[@]}" || die "the run $run failed; the reason is above, and the same" \
        "line goes on from here."
    REPORTED+=(--as "$2" "$run")
}

# sweep_report: prints the line that compares the runs.
sweep_report() {
    print_command "Then, to compare them:" codistill report "${REPORTED[@]}" --out "$OUT/report"
}
