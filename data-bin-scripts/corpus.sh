# shellcheck shell=bash
# What the scripts for the translation corpora share: options, settings, archives.  To be sourced
# by a script that has set SCRIPTS; sources stages.sh.
#
# parse_options sets DEST, LOGS, MIRROR, SUBWORDS, CODES, JOINED, FROM_SOURCES, WORKERS, CATALOGUE
# and DRY_RUN; an option that the script's own help does not name is refused.
#
# shellcheck disable=SC2034 # JOINED and FROM_SOURCES are for the scripts, LOGS for stages.sh

# shellcheck source=data-bin-scripts/stages.sh
source "$SCRIPTS/stages.sh"

parse_options() {
    DEST='' MIRROR='' SUBWORDS=bpe CODES='' FROM_SOURCES='' CATALOGUE='' DRY_RUN=''
    JOINED=()
    WORKERS=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    local option
    while (($#)); do
        option=$1
        shift
        if [[ $option == -h || $option == --help ]]; then
            usage
            exit
        elif [[ $option == -* ]] && ! usage | grep -q -e "^  $option "; then
            die "there is no option '$option'; --help lists them."
        fi
        case $option in
            --mirror | --bpe-codes | --workers | --catalogue)
                (($#)) || die "$option needs a value; --help says which."
                case $option in
                    --mirror) MIRROR=$1 ;;
                    --bpe-codes) CODES=$1 ;;
                    --workers) WORKERS=$1 ;;
                    --catalogue) CATALOGUE=$1 ;;
                esac
                shift
                ;;
            --sentencepiece) SUBWORDS=sentencepiece ;;
            --joined-dictionary) JOINED=(--joined-dictionary) ;;
            --from-sources) FROM_SOURCES=sources ;;
            --dry-run) DRY_RUN=1 ;;
            *)
                [[ -z $DEST ]] || die "give one folder for the data, not '$DEST' and '$option'."
                DEST=$option
                ;;
        esac
    done
    [[ -n $DEST ]] || die "give a folder for the data; --help says more."
    [[ $WORKERS =~ ^[1-9][0-9]*$ ]] || die "--workers is a number from 1 on, not '$WORKERS'."
    [[ -z $CODES || -r $CODES ]] || die "the BPE codes '$CODES' cannot be read."
    [[ -z $CODES || $SUBWORDS == bpe ]] || die "--bpe-codes and --sentencepiece exclude each other."
    LOGS=$DEST/logs
}

# Sees to it that what is in DEST was made with the same settings.
start() {
    if [[ -e $DEST/settings && $(<"$DEST/settings") != $(settings) ]]; then
        die "$DEST was made with other settings or another version of these scripts:" \
            "delete it and what was trained on it, or name another folder."
    fi
    [[ -z $DRY_RUN ]] || return 0
    python -c "import sacremoses, sentencepiece, subword_nmt" ||
        die "a package is missing: pip install 'fairseq-codistill[data]'"
    mkdir -p "$LOGS"
    settings >"$DEST/settings"
}

# Fetches and checks the archives of a corpus, unless what is made of them is there.
fetch_unless() {
    local made=$1 corpus=$2
    local fetch=(python "$SCRIPTS/fetch.py" ${CATALOGUE:+--catalogue "$CATALOGUE"})
    if [[ -z $DRY_RUN && -e $made ]]; then
        return
    fi
    step "Looking for room on the disk" "${fetch[@]}" --check-space "$corpus" "$DEST/archives"
    step "Fetching the archives" "${fetch[@]}" ${MIRROR:+--mirror "$MIRROR"} \
        "$corpus" "$DEST/archives"
}

# Repeats on the terminal what a stage found.
report() {
    if [[ -z $DRY_RUN && -e $LOGS/$1.log ]]; then
        sed 's/^/        /' "$LOGS/$1.log"
    fi
}

finish() {
    [[ -n $DRY_RUN ]] || say "Ready: $DEST/data-bin"
}
