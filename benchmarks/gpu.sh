#!/usr/bin/env bash
# What this software does on one GPU, in stages of at most nine minutes each.
#
#     benchmarks/gpu.sh check|speed|profile|study OUT [--tiny]
#
# For a machine with torch and a GPU, and no network: name a folder of wheels for what is missing
# (benchmarks/gpu_wheels.sh collects it) in WHEELS, and for the stage `study` a prepared set of text
# in DATA. --tiny runs a stage whole on a CPU. A stage writes to OUT as it goes and needs no other.
set -euo pipefail
usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] && [ $# -le 3 ] && [ "${2#-}" = "$2" ] || usage
stage=$1 out=$2 tiny=${3:-}
[ -z "$tiny" ] || [ "$tiny" = --tiny ] || usage
case $stage in check | speed | profile | study) ;; *) usage ;; esac
if [ "$stage" = study ] && [ -z "$tiny" ]; then
    data=$(cd "${DATA:?name a prepared set of text in DATA}" && pwd)
fi
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
: "${PYTHON:=python3}" "${SECONDS_PER_STAGE:=500}"
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/hybridnorm-gpu/inductor}
if [ -n "${WHEELS:-}" ]; then
    site=${TMPDIR:-/tmp}/hybridnorm-gpu/site
    [ -d "$site" ] || "$PYTHON" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$site"
fi

case $stage in
check)
    timeout "$SECONDS_PER_STAGE" "$PYTHON" "$root/benchmarks/gpu/check.py" "$out"
    ;;
speed)
    "$PYTHON" "$root/benchmarks/gpu/speed.py" "$out" --seconds "$SECONDS_PER_STAGE" $tiny
    ;;
profile)
    "$PYTHON" "$root/benchmarks/gpu/kernels.py" "$out" --seconds "$SECONDS_PER_STAGE" $tiny
    ;;
study)
    cd "$out"
    # Runs that an earlier call finished are not run again.
    [ ! -f study.tar.gz ] || tar -xzf study.tar.gz
    jobs=6 overrides=(--data.prepared "${data:-}")
    [ -z "$tiny" ] || jobs=2 overrides=(
        --data.prepared None --model.vocab-size None --model.d-model 32 --model.n-layers 2
        --model.d-ff 64 --train.steps 12 --train.batch-size 4 --train.seq-len 64
        --train.eval-every 12 --train.log-every 4 --train.eval-sequences 8
        --schedule.warmup-steps 2 --train.compile off --seed 0
        --optimizer.lr 1e-3 2e-3 --model.placement pre-norm hybridnorm
    )
    timeout --signal INT --kill-after 20 "$SECONDS_PER_STAGE" "$PYTHON" -m hybridnorm study \
        placements-47M --dir study --jobs "$jobs" "${overrides[@]}" || status=$?
    [ "${status:-0}" != 124 ] || echo "stopped after $SECONDS_PER_STAGE s; the next call goes on"
    [ -d study ] || exit "${status:-1}"
    tar -czf study.tar.gz --exclude checkpoints study
    ;;
esac
