#!/usr/bin/env bash
# Run the tests:  bash tests/run.sh [--full] [pytest arguments]
#
# Uses the active virtual environment; if none is active, makes .test-env beside the project and
# installs into it (several GB: torch from the package registry).  --full adds the long tests, and
# runs all of them one after the other; otherwise two files run side by side (-n 0: they do not).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -e .test-env/installed ] || [ setup.py -nt .test-env/installed ]; then
        for python in python3.12 python3.11 python3; do
            if "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' \
                2>/dev/null; then break; fi
            python=
        done
        if [ -z "$python" ]; then
            echo "tests/run.sh: no Python 3.11 or 3.12 found; install one, or activate an environment" >&2
            exit 1
        fi
        echo "== installing into .test-env with $("$python" --version)"
        "$python" -m venv .test-env
        .test-env/bin/python -m pip install --quiet --upgrade pip
        .test-env/bin/python -m pip install --quiet -e ".[vision,report,s3,test,dev]"
        touch .test-env/installed
    fi
    # shellcheck source=/dev/null
    source .test-env/bin/activate
fi

# One thread a process: real runs have several, and bit-for-bit statements hold for one number.
export OMP_NUM_THREADS=1

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== shellcheck"
shellcheck -x .ci/run {benchmarks,data-bin-scripts,examples,results,tests}/*.sh results/*/*.sh examples/slurm/*.sbatch
echo "== pytest"
# In the order of their names, so that the longest test, of chaos, is not the last.
side_by_side=(-n 2 --dist loadfile --no-loadscope-reorder)
for argument in "$@"; do
    if [ "$argument" = --full ]; then side_by_side=(-n 0); fi
done
exec python -m pytest --durations=25 "${side_by_side[@]}" "$@"
