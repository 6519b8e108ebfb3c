#!/usr/bin/env bash
# The main job, or the tests, in an environment of its own that is made on first use.
#
#   ./run.sh                train and analyse the default study
#   ./run.sh FLAGFILE       the same for another configuration, for example configs/smoke.flags,
#                           recorded into recordings/ under the name of the file
#   ./run.sh test [ARGS]    run the tests; ARGS go to pytest
#
# PYTHON names the interpreter to make the environment with (default: python3).
set -euo pipefail

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1-} in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$here/run.sh"; exit 0 ;;
  test) ;;
  *)
    [ $# -le 1 ] || fail "$2: one flag file at most"
    flagfile=$(realpath -- "${1:-$here/configs/mini_mnist.flags}")
    [ -f "$flagfile" ] || fail "$1: no such flag file; see configs/"
    ;;
esac
cd "$here"

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$python: needs Python 3.11 or newer; name one with PYTHON=... ./run.sh"
  echo "Making the environment .venv with $("$python" --version)"
  "$python" -m venv .venv || { rm -f .venv/bin/python; fail "$python cannot make an environment; install its venv"; }
fi
made_from=$(cat pyproject.toml setup.cfg constraints.txt)
if [ "$made_from" != "$(cat .venv/made_from 2>/dev/null)" ]; then
  echo "Installing into .venv; this takes a minute and a network, once"
  # pip compiles one file after the other, on one processor; and where PYTHONDONTWRITEBYTECODE is set, every process would
  # compile what is not compiled yet. Some packages hold templates that are no Python: they are left.
  .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test]'
  .venv/bin/python -m compileall -qq -j 0 .venv/lib train_dynamics || true
  echo "$made_from" >.venv/made_from
fi

if [ "${1-}" = test ]; then
  shift
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  # By file: what a file makes once for its tests is made in one process. In their order: by number of tests, the file that
  # takes longest for each would come last, with nothing beside it.
  # More processes than processors: a third of the time, tests wait for commands that they started, and for the disk.
  workers=$(.venv/bin/python -c 'import os; print(min(4, 2 * (os.cpu_count() or 1)))')
  exec .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
fi
recording=recordings/$(basename "$flagfile" .flags)
.venv/bin/python -m train_dynamics.train --flagfile="$flagfile" --recording="$recording"
.venv/bin/python -m train_dynamics.analyze --recording="$recording"
