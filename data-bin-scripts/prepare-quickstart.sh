#!/usr/bin/env bash
# Makes the quickstart's data: downloads the wheels of catalogues.txt, cleans and splits their
# German-English text, learns one SentencePiece model for both languages, and lays out the result
# with fairseq-preprocess.
#
# Usage: prepare-quickstart.sh DEST
#
# DEST gets wheels/, text/, pieces/ and data-bin/, and logs in logs/. What is there is used again.
# Run it where fairseq_codistill is installed: it takes python and fairseq-preprocess from PATH.
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VOCABULARY=3000
HELD_OUT=500

# shellcheck source=data-bin-scripts/stages.sh
source "$SCRIPTS/stages.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit
fi
[[ $# -eq 1 && $1 != -* ]] || die "give one folder for the data, not '$*'; --help says more."
DEST=$1
LOGS=$DEST/logs
mkdir -p "$LOGS"

# Whatever the data depends on: with another version of it, what is in DEST is not ours to use.
settings() (
    echo "vocabulary $VOCABULARY, held out $HELD_OUT"
    cd "$SCRIPTS"
    sha256sum catalogues.txt prepare_catalogues.py prepare-quickstart.sh \
        sentencepiece_text.py lines.py
)

# --python-version: the newest catalogues are in wheels for a newer Python than the one here.
download_wheels() {
    python -m pip download --no-deps --only-binary=:all: --python-version 3.14 \
        --require-hashes --requirement "$SCRIPTS/catalogues.txt" --dest "$1"
}

make_text() {
    mkdir "$1"
    python "$SCRIPTS/prepare_catalogues.py" "$DEST"/wheels/*.whl \
        --pinned "$SCRIPTS/catalogues.txt" --held-out $HELD_OUT --dest "$1"
}

make_pieces() {
    mkdir "$1"
    python "$SCRIPTS/sentencepiece_text.py" train "$DEST"/text/train.{de,en} \
        --model "$1/sentencepiece.model" --vocab-size $VOCABULARY
    local file
    for file in {train,valid,test}.{de,en}; do
        python "$SCRIPTS/sentencepiece_text.py" encode \
            "$1/sentencepiece.model" "$DEST/text/$file" "$1/$file"
    done
}

make_data_bin() {
    local pieces=$DEST/pieces
    fairseq-preprocess --source-lang de --target-lang en --joined-dictionary --workers 2 \
        --trainpref "$pieces/train" --validpref "$pieces/valid" --testpref "$pieces/test" \
        --destdir "$1"
}

if [[ -e $DEST/settings && $(<"$DEST/settings") != $(settings) ]]; then
    die "$DEST was made with other settings or another version of these scripts:" \
        "delete it and what was trained on it, or name another folder."
fi
settings >"$DEST/settings"
# Emptied, as the check after the download may ask for, the folder is no finished download.
rmdir "$DEST/wheels" 2>/dev/null || true
stage download "$DEST/wheels" "Downloading the catalogues (50 MB)" download_wheels
python "$SCRIPTS/prepare_catalogues.py" "$DEST"/wheels/*.whl --pinned "$SCRIPTS/catalogues.txt"
stage text "$DEST/text" "Cleaning and splitting the German-English text" make_text
stage pieces "$DEST/pieces" "Learning $VOCABULARY subword pieces" make_pieces
stage preprocess "$DEST/data-bin" "Laying out the data with fairseq-preprocess" make_data_bin
