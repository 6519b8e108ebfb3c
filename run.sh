#!/usr/bin/env bash
# The main job, or the tests, in an environment of its own that is made on first use.
#
#   ./run.sh                train and analyse the default study
#   ./run.sh FLAGFILE       the same for another configuration, for example configs/smoke.flags
#   ./run.sh test [ARGS]    run the tests; ARGS go to pytest
#
# PYTHON names the interpreter to make the environment with (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

case ${1-} in
  -h | --help) usage; exit 0 ;;
  test) ;;
  *)
    flagfile=${1:-configs/mini_mnist.flags}
    if [ $# -gt 1 ] || [ ! -f "$flagfile" ]; then
      echo "run.sh: ${2-$flagfile}: ${2+one flag file at most}${2-no such flag file; see configs/}" >&2
      exit 2
    fi
    ;;
esac

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "run.sh: $python: needs Python 3.11 or newer; name one with PYTHON=... ./run.sh" >&2
    exit 2
  fi
  echo "Making the environment .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
made_from=$(cat pyproject.toml setup.cfg constraints.txt)
if [ "$made_from" != "$(cat .venv/made_from 2>/dev/null)" ]; then
  echo "Installing into .venv; this takes a minute and a network, once"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
  echo "$made_from" >.venv/made_from
fi

if [ "${1-}" = test ]; then
  shift
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  exec .venv/bin/python -m pytest "$@"
fi
recording=recordings/$(basename "$flagfile" .flags)
.venv/bin/python -m train_dynamics.train --flagfile="$flagfile" --recording="$recording"
.venv/bin/python -m train_dynamics.analyze --recording="$recording"
