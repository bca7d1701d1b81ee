#!/usr/bin/env bash
# On a machine with a GPU, in one go: is it right, how fast is it, does it train? For time on a GPU that is short.
#
#   make bench-gpu [TO=runs/gpu] [STAGES="right kernels blocks steps training study"]
#   PYTHON=python3 PACKAGES=wheels DATASET=photos benchmarks/gpu.sh      where nothing can be installed or fetched
#
# Every stage has a time limit of its own and leaves log and tables in the folder TO, whatever becomes of the others.
# PYTHON names the interpreter (of .venv by default); PACKAGES a folder of wheels that it lacks, for a machine that
# nothing can be installed on: a wheel of pure Python is read where it lies. DATASET names the images of the study.

set -uo pipefail
cd "$(dirname "$0")/.."
TO=${TO:-runs/gpu}
ALL="right kernels blocks steps training study"
STAGES=${STAGES:-$ALL}
for name in $STAGES; do
	[[ " $ALL " == *" $name "* ]] || { echo "error: STAGES=$name: there are: $ALL" >&2; exit 2; }
done
PYTHON=${PYTHON:-.venv/bin/python}
for wheel in ${PACKAGES:+"$PACKAGES"/*.whl}; do PYTHONPATH="$wheel:${PYTHONPATH:-}"; done
export PYTHONPATH=".:${PYTHONPATH:-}" PYTHONUNBUFFERED=1

machine=$("$PYTHON" - <<'END'
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"error: PYTHON={sys.executable}: {error}")
if not torch.cuda.is_available():
    sys.exit("error: torch finds no CUDA device here; make bench, bench-blocks and bench-training measure a CPU")
try:
    import triton
except ImportError:
    triton = None
device = torch.cuda.get_device_properties(0)
print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}")
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, triton {getattr(triton, '__version__', 'missing')}")
END
) || exit 2
mkdir -p "$TO"
echo "$machine" | tee "$TO/machine.txt"

failed=0
stage() { # NAME SECONDS COMMAND…
	[[ " $STAGES " == *" $1 "* ]] || return 0
	local name=$1 limit=$2 start=$SECONDS code
	shift 2
	timeout "$limit" "$@" >"$TO/$name.txt" 2>&1
	code=$?
	[ $code = 0 ] || failed=1
	echo "$name: exit $code, $((SECONDS - start)) s: $(tail -n 1 "$TO/$name.txt")"
}

stage right 240 "$PYTHON" -m pytest tests/gconv tests/experiments/training -m "not soak" -q -x
stage kernels 300 "$PYTHON" -m benchmarks.kernels --dtypes=bfloat16 --repeats=9 --to="$TO/kernels"
stage blocks 120 "$PYTHON" -m benchmarks.blocks --csv="$TO/blocks.csv"
stage steps 120 "$PYTHON" -m benchmarks.steps --batch=256 --csv="$TO/steps.csv"
stage training 180 "$PYTHON" -m benchmarks.training --csv="$TO/training.csv"
stage study 600 "$PYTHON" -m experiments run log-groups --seeds=3 --wandb=off --runs_root="$TO/runs" ${DATASET:+--dataset="$DATASET"}
exit $failed
