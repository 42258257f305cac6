#!/usr/bin/env bash
# Makes IWSLT'14 German-English ready for training, as fairseq's own prepare-iwslt14.sh does:
# downloads the corpus (20 MB), tokenises, cleans and lower-cases it, splits it, learns 10,000 BPE
# merges on both languages, and lays out the result with fairseq-preprocess.
#
# Usage: prepare-iwslt14.sh [OPTIONS] DEST
#
#   --mirror URL_OR_FOLDER  take de-en.tgz from there
#   --sentencepiece         cut into 10,000 SentencePiece pieces in place of BPE
#   --bpe-codes FILE        take these BPE codes, do not learn any
#   --joined-dictionary     one dictionary for both languages (fairseq's recipe has two)
#   --workers N             processes for the work (default: one for each core)
#   --catalogue FILE        another list of archives than archives.toml beside this script
#   --dry-run               only print the commands
#
# DEST gets archives/ (with the archive's SHA-256, which later runs check), text/ (tokenised),
# subwords/ and data-bin/, and logs in logs/.  What is there is used again: a run that was broken
# off goes on where it was.  The whole corpus takes some 3 minutes on two cores.
#
# Run it where fairseq_codistill[data] is installed: it takes python and fairseq-preprocess from
# PATH.
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SIZE=10000

# shellcheck source=data-bin-scripts/corpus.sh
source "$SCRIPTS/corpus.sh"
parse_options "$@"

# Whatever the data depends on: with another version of it, what is in DEST is not ours to use.
settings() (
    echo "subwords $SUBWORDS $SIZE ${CODES:+codes $(sha256sum <"$CODES")}" "${JOINED[@]}"
    cd "$SCRIPTS"
    sha256sum prepare-iwslt14.sh iwslt14_text.py moses_text.py lines.py unpack.py subwords.py \
        sentencepiece_text.py
)

start
fetch_unless "$DEST/text" iwslt14
stage text "$DEST/text" "Tokenising, cleaning and splitting the text" \
    python "$SCRIPTS/iwslt14_text.py" --workers "$WORKERS" "$DEST/archives/de-en.tgz"
report text
stage subwords "$DEST/subwords" "Learning and applying $SUBWORDS" \
    python "$SCRIPTS/subwords.py" "$SUBWORDS" --languages de en --size $SIZE \
    ${CODES:+--codes "$CODES"} --workers "$WORKERS" "$DEST/text"
stage preprocess "$DEST/data-bin" "Laying out the data with fairseq-preprocess" \
    fairseq-preprocess --source-lang de --target-lang en "${JOINED[@]}" --workers "$WORKERS" \
    --trainpref "$DEST/subwords/train" --validpref "$DEST/subwords/valid" \
    --testpref "$DEST/subwords/test" --destdir
finish
