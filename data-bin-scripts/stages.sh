# shellcheck shell=bash
# Stages that say what they do, and are done once.  To be sourced; LOGS names the folder for logs.
#
#     stage NAME OUTPUT WHAT COMMAND...
#
# runs `COMMAND... OUTPUT.part` under `set -e`, with its output in $LOGS/NAME.log, and then moves
# OUTPUT.part to OUTPUT: what is at OUTPUT is always complete, and a stage whose OUTPUT is there is
# not run again.  With SHOW=1 the command's output goes to the terminal instead of a log.
#
#     step WHAT COMMAND...
#
# runs a command that sees for itself what is done already.  With DRY_RUN=1 both only print.

# Seconds since the first script of this run; exported, so that a script it calls counts on.
export STAGES_STARTED="${STAGES_STARTED:-$(date +%s)}"

say() {
    local seconds=$(($(date +%s) - STAGES_STARTED))
    printf '[%2d:%02d] %s\n' $((seconds / 60)) $((seconds % 60)) "$*"
}

# The comment at the top of the script, as its help.
usage() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

print_command() {
    printf '# %s\n' "$1"
    shift
    printf '%q ' "$@"
    printf '\n'
}

step() {
    local what=$1
    shift
    if [[ -n ${DRY_RUN:-} ]]; then
        print_command "$what" "$@"
        return
    fi
    say "$what"
    "$@" || die "$what failed; the reason is above"
}

stage() {
    local name=$1 output=$2 what=$3 log="$LOGS/$1.log" status
    shift 3
    if [[ -n ${DRY_RUN:-} ]]; then
        print_command "$what" "$@" "$output"
        return
    fi
    if [[ -e $output ]]; then
        say "$what: already there, $output"
        return
    fi
    say "$what"
    rm -rf "$output.part"
    # The subshell is no condition (as in `if ! (...)`): there bash would ignore its `set -e`.
    set +e
    if [[ -n ${SHOW:-} ]]; then
        (set -e && "$@" "$output.part")
        status=$?
    else
        (set -e && "$@" "$output.part") >"$log" 2>&1
        status=$?
    fi
    set -e
    if ((status != 0)) && [[ -n ${SHOW:-} ]]; then
        die "the stage '$name' failed with status $status; the reason is above"
    elif ((status != 0)); then
        printf '%s\n' "--- the last lines of $log" >&2
        tail -n 15 "$log" >&2
        printf '%s\n' "---" >&2
        die "the stage '$name' failed with status $status; the whole log is $log"
    fi
    mv "$output.part" "$output"
}
