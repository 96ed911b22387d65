#!/usr/bin/env bash
# Checks and measures Sidelight on this machine's GPU: `bash tests/gpu/run.sh OUT [--dry]`. See README.md beside this file.
#
# Needs neither a network nor an installed Sidelight: the checkout comes onto the path of the `python3` that is there
# (PYTHON names another one), and wheels come from WHEELS, a folder, if there are any (without it: .whl in the checkout).
set -euo pipefail

usage() { echo "usage: $0 OUT [--dry]   (OUT is a folder; --dry: tiny sizes on the CPU, in Triton's interpreter)" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out="" dry=""
for argument in "$@"; do
  case $argument in
    --dry) dry=--dry ;;
    -*) usage ;;
    *) [ -z "$out" ] || usage; out=$argument ;;
  esac
done
[ -n "$out" ] || usage
python=$(command -v "${PYTHON:-python3}") || { echo "run.sh: there is no ${PYTHON:-python3}" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
wheels=${WHEELS:-$root/.whl}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" # never the checkout: its folder `kernels` must not come onto sys.path

if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-compile --disable-pip-version-check \
    --target "$scratch/wheels" --requirement "$here/wheels.txt" ||
    echo "run.sh: the wheels of $wheels are not installed; going on without them" >&2
fi
"$python" "$here/checkout.py" "$root" "$scratch/site"
# What tests and benches share; not the folder `tests` itself, in which there is a folder `kernels`.
shared="$root/tests/support:$root/tests/kernels/support:$root/tests/bench"
export PYTHONPATH="$scratch/site:$scratch/wheels:$shared${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$scratch/site/bin:$PATH"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Set these to folders that stay, and a second run on this machine need not compile again.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$scratch/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}"
if [ -n "$dry" ]; then
  export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
else
  unset TRITON_INTERPRET
fi
"$python" "$here/run.py" "$out" "$scratch" $dry
