#!/usr/bin/env bash
# Lays out parallel text of one's own for fairseq: draws a part of it, learns one SentencePiece
# model for both languages on that, and runs fairseq-preprocess.
#
# Usage: prepare-text.sh TEXT DEST [OPTIONS]
#
#   TEXT               a folder with train, valid and test, each in both languages (train.de,
#                      train.en, ...), one sentence a line; a file may be compressed (train.de.xz)
#   DEST               gets text/, pieces/ and data-bin/, and logs in logs/
#   --pair SRC-TGT     languages (default: de-en)
#   --train-lines N    of the training text only N lines, drawn by chance (default: all)
#   --held-out-lines N of valid and of test only N lines, drawn by chance (default: all)
#   --vocabulary N     subword pieces (default: 4000)
#   --dry-run          only print the commands
#
# Drawn and not the first, for corpora are often sorted: the draw is the same each time.  What is
# there is used again.  Run it where fairseq_codistill[data] is installed: it takes python
# and fairseq-preprocess from PATH.
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=data-bin-scripts/stages.sh
source "$SCRIPTS/stages.sh"

TEXT='' DEST='' PAIR=de-en TRAIN_LINES=0 HELD_OUT_LINES=0 VOCABULARY=4000 DRY_RUN=''
while (($#)); do
    case $1 in
        -h | --help) usage && exit ;;
        --pair | --train-lines | --held-out-lines | --vocabulary)
            (($# > 1)) || die "$1 needs a value; --help says which."
            [[ $1 == --pair || $2 =~ ^[1-9][0-9]*$ ]] ||
                die "$1 $2 is no number; give a whole one from 1 on."
            case $1 in
                --pair) PAIR=$2 ;;
                --train-lines) TRAIN_LINES=$2 ;;
                --held-out-lines) HELD_OUT_LINES=$2 ;;
                --vocabulary) VOCABULARY=$2 ;;
            esac
            shift
            ;;
        --dry-run) DRY_RUN=1 ;;
        -*) die "there is no option '$1'; --help lists them." ;;
        *)
            if [[ -z $TEXT ]]; then
                TEXT=$1
            elif [[ -z $DEST ]]; then
                DEST=$1
            else
                die "give two folders, the text's and the data's, and not '$1' too."
            fi
            ;;
    esac
    shift
done
[[ -n $DEST ]] || die "give two folders, the text's and the data's; --help says more."
[[ $PAIR =~ ^[a-z]+-[a-z]+$ ]] || die "--pair $PAIR is no pair of languages; write it as de-en."
SOURCE=${PAIR%-*} TARGET=${PAIR#*-}
LOGS=$DEST/logs

settings() (
    printf '%s\n' "pair $PAIR, training lines $TRAIN_LINES, held-out lines $HELD_OUT_LINES," \
        "vocabulary $VOCABULARY (0: all)"
    cd "$SCRIPTS"
    sha256sum prepare-text.sh sample_lines.py subwords.py sentencepiece_text.py lines.py
)

if [[ -z $DRY_RUN ]]; then
    if [[ -e $DEST/settings && $(<"$DEST/settings") != $(settings) ]]; then
        die "$DEST was made with other settings or another version of these scripts:" \
            "delete it and what was trained on it, or name another folder."
    fi
    python -c "import sentencepiece, subword_nmt" ||
        die "a package is missing: pip install 'fairseq-codistill[data]'"
    mkdir -p "$LOGS"
    settings >"$DEST/settings"
fi
stage text "$DEST/text" "Drawing from the text in $TEXT" \
    python "$SCRIPTS/sample_lines.py" "$TEXT" --languages "$SOURCE" "$TARGET" \
    --train "$TRAIN_LINES" --held-out "$HELD_OUT_LINES"
stage pieces "$DEST/pieces" "Learning $VOCABULARY subword pieces" \
    python "$SCRIPTS/subwords.py" sentencepiece --languages "$SOURCE" "$TARGET" \
    --size "$VOCABULARY" "$DEST/text"
stage preprocess "$DEST/data-bin" "Laying out the data with fairseq-preprocess" \
    fairseq-preprocess --source-lang "$SOURCE" --target-lang "$TARGET" --joined-dictionary \
    --workers 2 --trainpref "$DEST/pieces/train" --validpref "$DEST/pieces/valid" \
    --testpref "$DEST/pieces/test" --destdir
[[ -n $DRY_RUN ]] || say "Ready: $DEST/data-bin"
