#!/usr/bin/env bash
# Translates the test set with the models of a run, and scores them: each model, the ensemble of
# all, and, as a curiosity, one model with the mean of all models' weights.
#
# Usage: evaluate.sh [OPTIONS] RUN [-- FLAGS OF FAIRSEQ-GENERATE...]
#
#   --data DIR         binarised data (default: data-bin/wmt16_en_de_bpe32k)
#   --pair SRC-TGT     languages (default: en-de)
#   --subset S         test or valid (default: test)
#   --average N        take the mean of each model's last N checkpoints (default: 10)
#   --best             take each model's checkpoint_best.pt instead
#   --beam N           (default: 4)
#   --lenpen X         length penalty (default: 0.6)
#   --references FILE  untokenised references, one a line, in place of the data's own, which have
#                      to be detokenised.  For newstest2014:
#                      sacrebleu -t wmt14/full -l en-de --echo ref >newstest2014.de
#   --sentencepiece    the data is cut by SentencePiece and not tokenised: only sacreBLEU
#   --groups N         models (default: as many as RUN has)
#   --out DIR          where to write (default: RUN/evaluation)
#   --cpu              do not use a GPU
#   --dry-run          only print the commands
#
# The defaults are those of Ott et al. (2018) for WMT'16; for IWSLT'14 give --pair de-en --beam 5
# --lenpen 1 --best.  The table is printed, and DIR/scores.json has it for programs.
set -euo pipefail

# shellcheck source=examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

DATA=data-bin/wmt16_en_de_bpe32k PAIR=en-de SUBSET=test AVERAGE=10 BEAM=4 LENPEN=0.6
RUN='' REFERENCES='' MODELS='' OUT='' DRY_RUN='' SUBWORDS=subword_nmt
DEVICE=() EXTRA=() UNTOKENISED=()
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --data | --pair | --subset | --average | --beam | --lenpen | --references | --groups | \
            --out)
            given=$(value "${@:1:2}")
            case $1 in
                --data) DATA=$given ;;
                --pair) PAIR=$given ;;
                --subset) SUBSET=$given ;;
                --average) AVERAGE=$(number "$@") ;;
                --beam) BEAM=$(number "$@") ;;
                --lenpen) LENPEN=$given ;;
                --references) REFERENCES=$given ;;
                --groups) MODELS=$(number "$@") ;;
                --out) OUT=$given ;;
            esac
            shift
            ;;
        --best) AVERAGE='' ;;
        --sentencepiece) SUBWORDS=sentencepiece UNTOKENISED=(--untokenised) ;;
        --cpu) DEVICE=(--cpu) ;;
        --dry-run) DRY_RUN=1 ;;
        --) EXTRA=("${@:2}") && break ;;
        -*) die "there is no option '$1'; --help lists them, flags of fairseq go after --." ;;
        *)
            [[ -z $RUN ]] || die "give one run, not '$RUN' and '$1'."
            RUN=$1
            ;;
    esac
    shift
done
[[ $PAIR =~ ^[a-z]+-[a-z]+$ ]] || die "--pair $PAIR is no pair of languages; write it as en-de."
[[ -n $RUN ]] || die "give a run, the --out of codistill launch; --help says more."
OUT=${OUT:-$RUN/evaluation}
if [[ -z $MODELS ]]; then
    MODELS=0
    while [[ -d $RUN/group-$MODELS ]]; do MODELS=$((MODELS + 1)); done
    # What is not there yet is two models, as in the recipes.
    ((MODELS > 0)) || MODELS=${DRY_RUN:+2}
    [[ -n $MODELS ]] || die "$RUN has no folder group-0; give the --out of codistill launch."
fi
[[ -n $DRY_RUN ]] || mkdir -p "$OUT"

# translate WHAT NAME CHECKPOINTS: OUT/NAME/ gets fairseq-generate's output.
# Batches of any number of sentences: with multiples of 8, fairseq's default, ve-fairseq 0.12.3
# silently leaves out the last (n mod 8).
translate() {
    step "Translating with $1" \
        fairseq-generate "$DATA" --task translation --user-dir "$REPO/fairseq_codistill" \
        --source-lang "${PAIR%-*}" --target-lang "${PAIR#*-}" \
        --path "$3" --gen-subset "$SUBSET" --beam "$BEAM" --lenpen "$LENPEN" \
        --remove-bpe "$SUBWORDS" --max-tokens 4000 --required-batch-size-multiple 1 \
        --results-path "$OUT/$2" "${DEVICE[@]}" "${EXTRA[@]}"
    ROWS+=("$1=$OUT/$2/generate-$SUBSET.txt")
}

average() {
    step "$1" python "$EXAMPLES/average_checkpoints.py" "${@:2}"
}

CHOICE=${AVERAGE:+the mean of the last $AVERAGE}
CHOICE=${CHOICE:-the best}
ROWS=() CHECKPOINTS=()
for ((model = 0; model < MODELS; model++)); do
    checkpoint=$RUN/group-$model/checkpoint_best.pt
    if [[ -n $AVERAGE ]]; then
        checkpoint=$OUT/model-$model.pt
        average "Averaging the last $AVERAGE checkpoints of model $model" \
            --last "$AVERAGE" --output "$checkpoint" "$RUN/group-$model"
    fi
    CHECKPOINTS+=("$checkpoint")
    translate "model $model" "model-$model" "$checkpoint"
done
if ((MODELS > 1)); then
    translate ensemble ensemble "$(IFS=: && echo "${CHECKPOINTS[*]}")"
    average "Averaging the models" --output "$OUT/weight-average.pt" "${CHECKPOINTS[@]}"
    translate "weight average" weight-average "$OUT/weight-average.pt"
fi

step "Scoring" python "$EXAMPLES/evaluate_scores.py" --language "${PAIR#*-}" --json "$OUT/scores.json" \
    ${REFERENCES:+--references "$REFERENCES"} "${UNTOKENISED[@]}" \
    --note "run=$RUN" --note "data=$DATA" --note "subset=$SUBSET" --note "beam=$BEAM" --note "lenpen=$LENPEN" \
    --note "checkpoints=$CHOICE" "${ROWS[@]}"
