#!/usr/bin/env bash
# On a machine with a GPU, in three calls of nine minutes at most: is it right, what is fastest, what does that give?
#
#   make bench-gpu PART=1 [TO=runs/gpu]     a cold compiled step on log groups, ceilings, the tests of band and programs
#   make bench-gpu PART=2                   every kernel and blocking; the table of measured kernels, written as it goes
#   make bench-gpu PART=3                   with that table: blocks and steps under two settings of cuDNN, training at 1, 4
#                                           and 8 seeds at once, a study
#   PYTHON=python3 PACKAGES=wheels DATASET=photos benchmarks/gpu.sh 1        where nothing can be installed or fetched
#
# Every stage has a time limit of its own and leaves log and tables in the folder TO, whatever becomes of the others;
# TO.tar.gz holds them all after each call. Parts 1 and 2 need torch, Triton and, for the tests, pytest. PYTHON names the
# interpreter (of .venv by default); PACKAGES a folder of wheels that it lacks, which are unpacked and nothing installed.
# DATASET names the images of the study. STANDIN=1 rehearses a call on a CPU, with tiny sizes.

set -uo pipefail
cd "$(dirname "$0")/.."
PART=${1:-${PART:-}}
[[ "$PART" =~ ^[123]$ ]] || { echo "error: PART=$PART: write 1, 2 or 3, as in make bench-gpu PART=1" >&2; exit 2; }
TO=${TO:-runs/gpu}
STANDIN=${STANDIN:-}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$TO" || exit 2
if [ -n "${PACKAGES:-}" ]; then
	for wheel in "$PACKAGES"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$TO.packages" || exit 2; done
	PYTHONPATH="$TO.packages:${PYTHONPATH:-}"
fi
export PYTHONPATH=".:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
XDG_CACHE_HOME=$(cd "$TO" && pwd)/cache # the table of this call, and of those after it
export XDG_CACHE_HOME

machine=$(STANDIN=$STANDIN "$PYTHON" - <<'PY'
import os, sys
try:
    import torch
except ImportError as error:
    sys.exit(f"error: PYTHON={sys.executable}: {error}")
if os.environ["STANDIN"]:
    print("a rehearsal on a CPU: the times mean nothing")
elif not torch.cuda.is_available():
    sys.exit("error: torch finds no CUDA device here; STANDIN=1 rehearses, make bench and bench-blocks measure a CPU")
else:
    device = torch.cuda.get_device_properties(0)
    print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}")
try:
    import triton
except ImportError:
    triton = None
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, triton {getattr(triton, '__version__', 'missing')}")
PY
) || exit 2
echo "$machine" | tee "$TO/machine.txt"

failed=0
stage() { # NAME SECONDS COMMAND…
	local name=$1 limit=$2 start=$SECONDS code
	[ -z "$STANDIN" ] || limit=$((limit * 10)) # the limits are those of a GPU; a busy CPU takes longer
	shift 2
	timeout "$limit" "$@" >"$TO/$name.txt" 2>&1
	code=$?
	[ $code = 0 ] || failed=1
	echo "$name: exit $code, $((SECONDS - start)) s: $(tail -n 1 "$TO/$name.txt")" | tee -a "$TO/stages.txt"
}

gpu="$PYTHON -m benchmarks.gpu"
standin=${STANDIN:+--standin}
case $PART in
1)
	parallel=$("$PYTHON" -c 'import xdist; print("-n8")' 2>/dev/null || true)
	tests="tests/gconv/kernels/test_band.py tests/gconv/operator/test_programs.py tests/gconv/operator/test_inductor.py"
	[ -z "$STANDIN" ] || { tests=tests/gconv/kernels/test_band_tiles.py parallel=; }
	stage cold 150 $gpu cold --to="$TO" $standin
	stage ceilings 60 $gpu ceilings --to="$TO" $standin
	stage tests 300 "$PYTHON" -m pytest $tests -q $parallel -p no:cacheprovider
	;;
2)
	stage learn 530 $gpu learn --to="$TO" --seconds=480 $standin ${STANDIN:+--dtypes=float32}
	;;
3)
	if [ -n "$STANDIN" ]; then
		DATASET=${DATASET:-photos}
		blocks="--layers=8@4 --partitions=log:3 --batch=2 --repeats=2 --modes=evaluation --cudnn=benchmark"
		steps="--nets=lognet:2 --ways=ours,loop --cudnn=deterministic,benchmark --batch=2 --repeats=2"
		training="--groups=1 --seeds=1,2 --batch=2 --steps=1 --blocks=1"
		study="--only=dense --seeds=1 --recipe.epochs=1 --model.width=4 --recipe.device=cpu"
	else
		both=--cudnn=deterministic,benchmark
		blocks="--layers=64@56,256@14 --partitions=log:4,8 $both"
		steps="--nets=lognet:log:4,lognet:4,alexnet:2 --batch=256 $both"
		training=--seeds=1,4,8 study="--seeds=2 --recipe.epochs=10 --compile=always"
	fi
	stage blocks 100 "$PYTHON" -m benchmarks.blocks --csv="$TO/blocks.csv" $blocks
	stage steps 100 "$PYTHON" -m benchmarks.steps --csv="$TO/steps.csv" $steps
	stage training 140 "$PYTHON" -m benchmarks.training --model=lognet --csv="$TO/training.csv" $training
	stage study 190 "$PYTHON" -m experiments run log-groups --wandb=off --runs_root="$TO/runs" $study \
		${DATASET:+--dataset="$DATASET"}
	;;
esac
tar -czf "$TO.tar.gz" -C "$(dirname "$TO")" --exclude='*.pt' "$(basename "$TO")" && echo "$TO.tar.gz"
exit $failed
