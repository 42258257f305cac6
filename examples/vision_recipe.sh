# shellcheck shell=bash
# What the scripts for the paper's image experiments share: options, the arithmetic of the
# comparison, and the lines that train.  To be sourced by a script whose head comment is its help.
#
# A figure is a set of runs, each with a name; figures that share a run share its folder.  A run is
# a recipe (a file of config/vision) and flags.  As recipe.sh says of translation, what is held
# fixed is the number of workers in all, the batch of each, and the number of updates: one model on
# all workers against n models on 1/n of them each, for half the epochs if n is 2.  Fewer GPUs than
# workers stand in for them by --update-freq.

# shellcheck source=examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

# What work_out needs, and what the functions below note.
FULL_BATCH='' REPORTED=()

# common_options: their help.
common_options() {
    cat <<END

Options:

  --only LIST     runs, of: $NAMES (default: all)
  --gpus N        GPUs in all, of this machine; they stand in for $WORKERS workers by --update-freq
                  (default: $GPUS)
  --data DIR      images, with train/ and val/ or test/ (default: $DATA)
  --out DIR       checkpoints, logs, exchanges, reports (default: $OUT)
  --seed S        of the first model (default: 1); other seeds' runs lie beside
  --precision P   fp16, bf16 or fp32 (default: $PRECISION)
  --cpu           CPU workers in place of GPUs; for a trial with a small model
  --dry-run       only print the commands

Run again, it passes over what is finished and goes on with what was cut off.  Flags after -- are
those of python -m fairseq_codistill.vision; they are added to every run's and win.
END
}

# imagenet_options ARGUMENT...: figure_options with what the figures on ImageNet have in common
# (Goyal et al. 2017; paper, section 3): 16 GPUs with 32 images each.  The paper names no precision.
imagenet_options() {
    RECIPES=$EXAMPLES/config/vision/imagenet WORKERS=16 BATCH=32 GPUS=8
    DATA=data/imagenet OUT=runs/imagenet PRECISION=fp16
    figure_options "$@"
}

# figure_options ARGUMENT...: reads the options of a figure's script.  Before it, the script sets
# NAMES, the list of its runs, and the defaults of RECIPES (a folder), WORKERS (of a comparison),
# BATCH (a worker's), GPUS, DATA, OUT and PRECISION.  Flags of training are left in EXTRA.
figure_options() {
    SEED=1 CPU='' DRY_RUN='' ONLY=''
    EXTRA=()
    local given name
    while (($#)); do
        case $1 in
            -h | --help) usage && common_options && exit ;;
            --gpus | --seed | --data | --out | --precision | --only)
                given=$(value "${@:1:2}")
                case $1 in
                    --gpus) GPUS=$(number "$@") ;;
                    --seed) SEED=$(number "$@") ;;
                    --data) DATA=$given ;;
                    --out) OUT=$given ;;
                    --precision) PRECISION=$given ;;
                    --only) ONLY=$given ;;
                esac
                shift
                ;;
            --cpu) CPU=1 ;;
            --dry-run) DRY_RUN=1 ;;
            --) EXTRA=("${@:2}") && break ;;
            *) die "unknown argument '$1'; --help says what there is, flags of training go after --." ;;
        esac
        shift
    done
    for name in $ONLY; do
        [[ " $NAMES " == *" $name "* ]] || die "--only $name is unknown; the runs are: $NAMES."
    done
    case $PRECISION in
        fp16 | bf16) DEVICE_FLAGS=(--amp "$PRECISION") ;;
        fp32) DEVICE_FLAGS=() ;;
        *) die "--precision $PRECISION is unknown; give fp16, bf16 or fp32." ;;
    esac
    # Half precision is for GPUs.
    [[ -z $CPU ]] || DEVICE_FLAGS=(--cpu)
}

# all_reduce NAME LABEL RECIPE FLAG...: one model on all workers.
all_reduce() {
    launched 1 "$@"
}

# codistilled NAME LABEL RECIPE FLAG...: two models on half of the workers each.
codistilled() {
    launched 2 "$@"
}

# predicting NAME LABEL RECIPE FLAG...: the same, but they swap predictions in place of checkpoints.
# All workers are one world then, which launch does not know.
predicting() {
    prepared 2 "$@" || return 0
    step "$1" torchrun --standalone --nproc-per-node $((MODELS * GROUP_WORKERS)) \
        -m fairseq_codistill.vision "${ARGUMENTS[@]}" --save-dir "$RUN" \
        --codistill-exchange predictions --codistill-num-groups "$MODELS"
}

# figure_report NAME: the report on the runs so far, in OUT/report/NAME.
figure_report() {
    step "$1: report" codistill report "${REPORTED[@]}" --out "$OUT/report/$1"
}

# launched MODELS NAME LABEL RECIPE FLAG...
launched() {
    prepared "$@" || return 0
    step "$2" \
        codistill launch --groups "$MODELS" --workers-per-group "$GROUP_WORKERS" --out "$RUN" -- \
        python -m fairseq_codistill.vision "${ARGUMENTS[@]}"
}

# prepared MODELS NAME LABEL RECIPE FLAG...: sets RUN and ARGUMENTS, and notes the run for the
# report; fails if it is not wanted.
prepared() {
    local name=$2 label=$3 recipe=$4
    MODELS=$1 RUN=$OUT/$name-seed$SEED
    shift 4
    [[ -z $ONLY || " $ONLY " == *" $name "* ]] || return 1
    work_out
    printf '# %d model(s) on %d worker(s) each, --update-freq %d, %d images a worker and pass: ' \
        "$MODELS" "$GROUP_WORKERS" "$UPDATE_FREQ" "$BATCH"
    printf '%d images an update for each model\n' $((GROUP_WORKERS * UPDATE_FREQ * BATCH))
    ARGUMENTS=(
        --data "$DATA" --config "$RECIPES/$recipe.yaml"
        --batch-size "$BATCH" --update-freq "$UPDATE_FREQ" --seed "$SEED"
        "$@" "${DEVICE_FLAGS[@]}" "${EXTRA[@]}"
    )
    REPORTED+=(--as "$label" "$RUN")
}
