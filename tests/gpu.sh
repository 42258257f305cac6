#!/usr/bin/env bash
# Check on a machine with a GPU what only a GPU can show, in at most four minutes:
#   bash tests/gpu.sh [--only NAME ...] [--json FILE] [--wheels DIR]
#
# Prints GPU, driver and torch, then a line "ok" or "FAIL" for each check.  --help shows all options.
# Uses $PYTHON if it is set, otherwise the first of python and python3 that has torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
has_torch='import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'

for python in ${PYTHON:+"$PYTHON"} python python3; do
    if "$python" -c "$has_torch" 2>/dev/null; then
        exec "$python" "$here/gpu_checks.py" "$@"
    fi
done
echo "tests/gpu.sh: found no Python that has torch; activate an environment, or set PYTHON" >&2
exit 2
