#!/usr/bin/env bash
# Makes WMT'16 English-German ready for training, as fairseq's scaling recipe (Ott et al., 2018)
# has it: 32,000 joint BPE merges, newstest2013 for validation, newstest2014 for the test.
#
# Usage: prepare-wmt16-en-de.sh [OPTIONS] DEST
#
#   --from-sources          make the set from the organisers' archives (1.7 GB) by the same rules,
#                           in place of Google's prepared one; hours of work
#   --mirror URL_OR_FOLDER  take the archives from there
#   --sentencepiece         cut into 32,000 SentencePiece pieces in place of BPE; needs the sources
#   --bpe-codes FILE        take these BPE codes, do not learn any; needs the sources
#   --workers N             processes for the work (default: one for each core)
#   --catalogue FILE        another list of archives than archives.toml beside this script
#   --dry-run               only print the commands
#
# DEST gets archives/ (with their SHA-256, which later runs check), text/ (tokenised, from the
# sources only), subwords/ and data-bin/, and logs in logs/.  What is there is used again: a run
# that was broken off goes on where it was.
#
# Run it where fairseq_codistill[data] is installed: it takes python and fairseq-preprocess from
# PATH.
set -euo pipefail

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SIZE=32000
# Lines that SentencePiece learns from: all nine million do not fit into most machines' memory.
SAMPLE=2000000

# shellcheck source=data-bin-scripts/corpus.sh
source "$SCRIPTS/corpus.sh"
parse_options "$@"
if [[ -z $FROM_SOURCES && ($SUBWORDS != bpe || -n $CODES) ]]; then
    die "Google's prepared set is already cut by its own BPE: --sentencepiece and --bpe-codes" \
        "need --from-sources too."
fi

# Whatever the data depends on: with another version of it, what is in DEST is not ours to use.
settings() (
    echo "${FROM_SOURCES:-prepared} subwords $SUBWORDS $SIZE ${CODES:+codes $(sha256sum <"$CODES")}"
    cd "$SCRIPTS"
    sha256sum prepare-wmt16-en-de.sh wmt16_text.py moses_text.py lines.py unpack.py subwords.py \
        sentencepiece_text.py
)

start
if [[ -n $FROM_SOURCES ]]; then
    fetch_unless "$DEST/text" wmt16-sources
    stage text "$DEST/text" "Tokenising and cleaning the text" \
        python "$SCRIPTS/wmt16_text.py" --workers "$WORKERS" sources "$DEST/archives"
    report text
    # German first, as Google's script has it: BPE breaks ties by what comes first.
    stage subwords "$DEST/subwords" "Learning and applying $SUBWORDS" \
        python "$SCRIPTS/subwords.py" "$SUBWORDS" --languages de en --size $SIZE \
        ${CODES:+--codes "$CODES"} --sample $SAMPLE --workers "$WORKERS" "$DEST/text"
else
    fetch_unless "$DEST/subwords" wmt16
    stage subwords "$DEST/subwords" "Taking the subwords out of the archive" \
        python "$SCRIPTS/wmt16_text.py" prepared "$DEST/archives"
    report subwords
fi
stage preprocess "$DEST/data-bin" "Laying out the data with fairseq-preprocess" \
    fairseq-preprocess --source-lang en --target-lang de --joined-dictionary \
    --nwordssrc 32768 --nwordstgt 32768 --workers "$WORKERS" \
    --trainpref "$DEST/subwords/train" --validpref "$DEST/subwords/valid" \
    --testpref "$DEST/subwords/test" --destdir
finish
