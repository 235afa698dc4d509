#!/usr/bin/env bash
# One call on a GPU machine that has torch and numpy (transformers for its engine): kernels, then served traces.
#
#   OUT=DIR bash profiler/campaigns/run_on_gpu.sh [CAMPAIGN] [EXPERIMENT]
#
# Leaves measurements.jsonl and served-*.json in OUT: at most 6 files for two models and two engines, each well under 16 MiB.
# Ends within ten minutes; called again with the same OUT (or with RESUME=DIR of the earlier files) it goes on where it stopped.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-measurements}
CAMPAIGN=${1:-h200}
EXPERIMENT=${2:-serve-h200}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
[ -n "${RESUME:-}" ] && cp -n "$RESUME"/measurements.jsonl "$RESUME"/served-*.json "$OUT"/ 2>/dev/null
begin=$SECONDS
$PYTHON -m profiler.measure "$CAMPAIGN" --out "$OUT" --time-limit-s "${KERNELS_S:-230}" 2>&1 | tail -n 15
# Serving starts no further engine after this many seconds; one engine takes about 90.
$PYTHON -m profiler.serve run "$EXPERIMENT" --out "$OUT" --time-limit-s "$((${TOTAL_S:-450} - (SECONDS - begin)))" 2>&1 | tail -n 25
ls -l "$OUT"
