# shellcheck shell=bash
# What the experiments share; to be sourced after examples/recipe.sh, with OUT and RESULTS set.

# publish EXPERIMENT LABEL=RUNS...: writes RESULTS/EXPERIMENT/ on the runs of OUT of such names.
publish() {
    local experiment=$1 row runs=()
    shift
    for row in "$@"; do
        # shellcheck disable=SC2206 # the pattern is to be expanded
        runs+=(--as "${row%=*}" $OUT/${row##*=})
    done
    step "$experiment: report" codistill report "${runs[@]}" --json --out "$RESULTS/$experiment"
}
