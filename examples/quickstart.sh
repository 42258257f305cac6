#!/usr/bin/env bash
# From nothing to two codistilled translation models, on the CPU (or GPUs, if there are any).
#
# Usage: quickstart.sh [--updates N]
#
# Needs Linux and Python 3.11 or 3.12.  Makes a virtual environment, installs this project, makes
# German-English text from permissively licensed translation catalogues, trains two groups that
# codistil, translates the test set with each model and with both as an ensemble, and prints a
# table.  Five to ten minutes on two cores after the installation.  Run again, it uses what is there
# and goes on with what is not finished.
#
# An active virtual environment that has the project installed is used instead of a new one.
#
# QUICKSTART_DIR      where everything goes (default: quickstart/ in the repository)
# QUICKSTART_PYTHON   the Python to use (default: the first of python3.12, python3.11, python3)
# QUICKSTART_UPDATES  updates of each model, as --updates (default: 1600); for a trial of the
#                     machinery rather than of the method, 40 will do and take about a minute
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=data-bin-scripts/stages.sh
source "$REPO/data-bin-scripts/stages.sh"

UPDATES=${QUICKSTART_UPDATES:-1600}
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --updates) UPDATES=${2:-} && shift ;;
        --updates=*) UPDATES=${1#*=} ;;
        *) die "unknown argument '$1'; --help says what there is." ;;
    esac
    shift
done
[[ $UPDATES =~ ^[1-9][0-9]*$ ]] || die "'$UPDATES' is no number of updates; give 1 or more."

DIR=${QUICKSTART_DIR:-$REPO/quickstart}
mkdir -p "$DIR/logs"
DIR=$(cd "$DIR" && pwd)
LOGS=$DIR/logs
DATA=$DIR/data
RUN=$DIR/run-$UPDATES

# --- the environment ---------------------------------------------------------------------------

# Whether a Python is there, starts, and is one that the fairseq packages have wheels for.
fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null
}

find_python() {
    local python
    if [[ -n ${QUICKSTART_PYTHON:-} ]]; then
        fits "$QUICKSTART_PYTHON" ||
            die "QUICKSTART_PYTHON=$QUICKSTART_PYTHON is no Python 3.11 or 3.12; name one."
        echo "$QUICKSTART_PYTHON"
        return
    fi
    for python in python3.12 python3.11 python3; do
        if fits "$python"; then
            echo "$python"
            return
        fi
    done
    die "no Python 3.11 or 3.12 found; install one, or name it with QUICKSTART_PYTHON."
}

# -I: the project must be installed; that the current folder is the repository does not count.
has_project() {
    "$1" -I -c 'import importlib.metadata as m; m.version("fairseq-codistill")' 2>/dev/null
}

install_project() {
    "$PYTHON" -m venv "$DIR/venv"
    "$DIR/venv/bin/python" -m pip install --editable "$REPO"
    touch "$1"
}

if [[ -n ${VIRTUAL_ENV:-} ]] && has_project "$VIRTUAL_ENV/bin/python"; then
    say "Using the active virtual environment, $VIRTUAL_ENV"
    BIN=$VIRTUAL_ENV/bin
else
    PYTHON=$(find_python)
    stage install "$DIR/venv/installed" "Installing into $DIR/venv (some minutes)" install_project
    BIN=$DIR/venv/bin
fi
export PATH=$BIN:$PATH

# --- data, training, translation ---------------------------------------------------------------

bash "$REPO/data-bin-scripts/prepare-quickstart.sh" "$DATA"

# fairseq's batches are multiples of 8 sentences by default, and ve-fairseq 0.12.3 silently leaves
# out the rest: 4 of 500 sentences, in generation too.
WHOLE=(--required-batch-size-multiple 1)

# Two groups want an even number of GPUs: of several take two, share a single one.  `--cpu` is for
# machines whose GPUs this torch cannot use.
choose_devices() {
    local count visible=${CUDA_VISIBLE_DEVICES:-0,1}
    # With a driver too old for this torch, device_count() is what the driver lists.
    count=$(python -c 'from torch import cuda; print(cuda.is_available() * cuda.device_count())')
    case $count in
        0) CPU=(--cpu) ;;
        1) export CUDA_VISIBLE_DEVICES=${visible%%,*},${visible%%,*} ;;
        *) CUDA_VISIBLE_DEVICES=$(cut -d , -f 1,2 <<<"$visible") && export CUDA_VISIBLE_DEVICES ;;
    esac
}

# Small enough for the time on a CPU.  Few passes over the data: no dropout, a learning rate
# that ends at 0.  Alpha starts low, because at first there is nothing to learn from a peer.
train() {
    local warmup=$((UPDATES / 5 + 1)) interval=$((UPDATES / 25 + 1)) CPU=()
    choose_devices
    codistill launch --groups 2 --out "$RUN" -- \
        fairseq-train "$DATA/data-bin" --source-lang de --target-lang en \
        --user-dir "$REPO/fairseq_codistill" \
        --task codistill_translation --criterion codistill_cross_entropy \
        --codistill-interval "$interval" --codistill-alpha 0.3 --codistill-alpha-growth 1.1 \
        --codistill-alpha-max 1.0 --codistill-burn-in "$warmup" \
        --arch transformer --encoder-layers 3 --decoder-layers 3 \
        --encoder-embed-dim 128 --decoder-embed-dim 128 \
        --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 \
        --encoder-attention-heads 4 --decoder-attention-heads 4 \
        --encoder-normalize-before --decoder-normalize-before \
        --share-all-embeddings --dropout 0 \
        --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 \
        --lr 0.003 --lr-scheduler polynomial_decay --warmup-updates "$warmup" \
        --total-num-update "$UPDATES" --max-update "$UPDATES" \
        --max-tokens 700 --max-tokens-valid 4000 "${WHOLE[@]}" --seed 1 \
        --save-interval-updates "$((UPDATES / 8 + 1))" --keep-interval-updates 1 \
        --no-epoch-checkpoints --log-format json --log-interval 20 \
        "${CPU[@]}"
    touch "$1"
}

# generate NAME CHECKPOINTS OPTION...: writes NAME with fairseq-generate's output.
generate() {
    local name=$1 checkpoints=$2
    shift 2
    fairseq-generate "$DATA/data-bin" --source-lang de --target-lang en --task translation \
        --user-dir "$REPO/fairseq_codistill" --path "$checkpoints" --max-tokens 4000 \
        "${WHOLE[@]}" "$@" >"$name"
}

# Two at a time: every one of these is a process with one thread's work, half of it starting up.
translate() {
    local a=$RUN/group-0/checkpoint_best.pt b=$RUN/group-1/checkpoint_best.pt model
    local translating scoring
    local -A checkpoints=([model-0]=$a [model-1]=$b [ensemble]=$a:$b)
    export OMP_NUM_THREADS=1
    # If one of the two fails, the other need not go on; with none left, kill has nothing to do.
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    mkdir "$1"
    for model in model-0 model-1 ensemble; do
        generate "$1/$model.translated" "${checkpoints[$model]}" --beam 4 \
            --max-len-a 1.5 --max-len-b 10 --remove-bpe sentencepiece &
        translating=$!
        generate "$1/$model.scored" "${checkpoints[$model]}" --score-reference &
        scoring=$!
        wait $translating
        wait $scoring
    done
}

SHOW=1 stage train "$RUN/finished" "Training two groups of one worker for $UPDATES updates" train
stage translate "$RUN/translations" "Translating the test set with each model and with both" \
    translate
say "Done."
echo
python "$REPO/examples/quickstart_table.py" --data "$DATA" --run "$RUN"
cat <<END

Checkpoints: $RUN/group-*/checkpoint_best.pt
Logs:        $RUN/group-*/log.txt, $LOGS/
END
