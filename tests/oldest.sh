#!/usr/bin/env bash
# Runs tests with the oldest versions that pyproject.toml admits, in an environment of their own.
#
#   tests/oldest.sh torch tests/test_layers.py -k cbam
#
# The first argument is the backend, or is left out for all three; the rest is pytest's. PyTorch is
# the newest that pip finds, unless TORCH names another: TORCH="torch==2.4.0". The oldest versions
# warn of one another, so that a warning is no error here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

backends=()
while [[ "${1:-}" =~ ^(tensorflow|jax|torch)$ ]]; do
  backends+=(--backend "$1")
  shift
done

if [[ ! -d .venv-oldest ]]; then
  python3.11 -m venv .venv-oldest
  .venv-oldest/bin/pip install -c tests/oldest.txt -e ".[jax,tensorflow,torch,visualize,weights]" \
    "${TORCH:-torch}" hypothesis pytest pytest-timeout pytest-xdist
fi
exec .venv-oldest/bin/pytest "${backends[@]}" -o filterwarnings=default "$@"
