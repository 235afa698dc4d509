#!/usr/bin/env bash
# One call on a GPU machine that has torch and numpy (transformers for its engine): kernels, then served traces.
#
#   OUT=DIR bash profiler/campaigns/run_on_gpu.sh [CAMPAIGN] [EXPERIMENT]
#
# Leaves measurements.jsonl and served-*.json in OUT: at most 6 files for two models and two engines, each well under 16 MiB.
# Ends within ten minutes; called again with the same OUT (or with RESUME=DIR of the earlier files) it goes on where it stopped.
# A point that fails is passed over. A process that dies or hangs (a lost device, a crash in a kernel) is started again while
# there is time; the point it died in twice is passed over too. Whatever was measured is on disk. The exit status is that of the
# worse half; the files count whatever it says.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-measurements}
CAMPAIGN=${1:-h200}
EXPERIMENT=${2:-serve-h200}
PYTHON=${PYTHON:-python3}
KERNELS_S=${KERNELS_S:-230}
TOTAL_S=${TOTAL_S:-450}
GRACE_S=${GRACE_S:-45}    # a point may take so long past the limit before its process is ended
ATTEMPTS=${ATTEMPTS:-4}
mkdir -p "$OUT"
[ -n "${RESUME:-}" ] && cp -n "$RESUME"/measurements.jsonl "$RESUME"/served-*.json "$OUT"/ 2>/dev/null
begin=$SECONDS

# attempts SECONDS COMMAND...: again while it fails and time is left; the command gets the seconds left as --time-limit-s
attempts() {
  local end=$((SECONDS + $1)) left status=1 attempt
  shift
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    left=$((end - SECONDS))
    ((left > 0)) || break
    timeout --signal=KILL "$((left + GRACE_S))" "$@" --time-limit-s "$left" 2>&1 | tail -n 25
    status=${PIPESTATUS[0]}
    ((status == 0)) && break
    echo "attempt $attempt ended with status $status"
  done
  return "$status"
}

attempts "$KERNELS_S" "$PYTHON" -m profiler.measure "$CAMPAIGN" --out "$OUT"
kernels=$?
# Serving starts no further engine after this many seconds; one engine takes about 90.
GRACE_S=$((GRACE_S + 100)) attempts "$((TOTAL_S - (SECONDS - begin)))" "$PYTHON" -m profiler.serve run "$EXPERIMENT" --out "$OUT"
served=$?
ls -l "$OUT"
exit "$((kernels > served ? kernels : served))"
