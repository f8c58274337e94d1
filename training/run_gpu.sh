#!/bin/sh
# Trains, exports and evaluates within a given time on one GPU machine (or, with GAMEGEN_SMALL=1, tries it on a CPU).
#
#   run_gpu.sh MINUTES PLAN START
#
# PLAN   first   foundation, the first part of its plan; then a short evaluation
#        second  the rest of the foundation's plan, then InstructNet with the foundation frozen; then the evaluation
#        whole   all of it in one call
# START  model folder to start from where STATE has nothing to go on with
#
# OUT gets model.tar.* (the model folder in parts, renewed every 100 s), train.log, sheet_*.png and *.json.
# STATE (default /tmp/gamegen-state) keeps the full state, the built renderer and the compiler's cache.
set -u
minutes=$1 plan=$2 start=$3
here=$(cd "$(dirname "$0")" && pwd)
export OUT=${OUT:-out} STATE=${STATE:-/tmp/gamegen-state}
export TORCHINDUCTOR_CACHE_DIR=$STATE/inductor TRITON_CACHE_DIR=$STATE/triton
export PYTORCH_ALLOC_CONF=expandable_segments:True
mkdir -p "$OUT" "$STATE"
python=${PYTHON:-python3}
begin=$(date +%s)
end=$(awk "BEGIN { print int($begin + 60 * $minutes - 10) }")

# at SHARE: the moment when that share of the time is over, in seconds since 1970.
at() { awk "BEGIN { print int($begin + ($end - $begin) * $1) }"; }

# train SCRIPT UNTIL ARGUMENT...: a failed run goes on from its last state, not compiled and with a smaller batch.
train() {
    script=$1 until=$2
    shift 2
    "$python" "$here/$script" --until "$until" "$@" && return
    echo "$script failed; once more without compilation" >&2
    safe="--compile 0"
    [ "${GAMEGEN_SMALL:-0}" = 1 ] || safe="$safe --batch 24"
    "$python" "$here/$script" --until "$until" "$@" $safe
}

"$python" -c "import sys; sys.path.insert(0, '$here'); from gamegen.world import build; import torch
print(build(torch.cuda.is_available()))" || exit 1
reserve=${EVAL_SECONDS:-55}
case $plan in
first)
    train train_foundation.py $((end - reserve)) --start "$start" --to-fraction 0.6 ${FOUNDATION:-}
    parts=sheet,keys,drift
    ;;
second)
    train train_foundation.py "$(at 0.52)" --start "$start" --from-fraction 0.6 ${FOUNDATION:-}
    ;;
whole)
    train train_foundation.py "$(at 0.62)" --start "$start" ${FOUNDATION:-}
    ;;
*)
    echo "unknown plan: $plan" >&2
    exit 64
    ;;
esac
if [ "$plan" != first ]; then
    [ -d "$STATE/model" ] && start=$STATE/model
    train train_instructnet.py $((end - reserve)) --start "$start" ${INSTRUCTNET:-}
    parts=sheet,vae,keys,drift
fi
left=$((end - $(date +%s)))
[ "$left" -gt 0 ] || left=1
echo "evaluation: $left s left"
timeout "$left" "$python" "$here/eval.py" "$STATE/model" --tag "$plan" --parts "$parts" \
    --context-noises "${NOISES:-0.05,0.15}"
status=$?
ls -l "$OUT"
exit $status
