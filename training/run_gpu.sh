#!/bin/sh
# Trains, exports and evaluates within a given time on one GPU machine (or, with GAMEGEN_SMALL=1, tries it on a CPU).
#
#   run_gpu.sh MINUTES PLAN START
#
# PLAN   perception  autoencoder, text encoder and judges side by side, then a minute of the foundation as a trial
#        foundation  the larger part of the foundation's plan, then what keys and words do (QUICK_SECONDS)
#        finish      the rest of it, InstructNet with the foundation frozen, then the evaluation
#        Both go on with the judges while the transformer's passes compile (JUDGES_MINUTES for attributes and pose,
#        KEYS_MINUTES for the keys; 0: not).
# START  model folder to start from where STATE has nothing to go on with
#
# OUT gets model.tar.* (the model folder in parts), logs, pictures and tables. STATE (default /tmp/gamegen-state) keeps
# the full state, the built renderer and the compiler's cache. TEACHER is the file of `train_text.py teacher`.
set -u
minutes=$1 plan=$2 start=$3
here=$(cd "$(dirname "$0")" && pwd)
export OUT=${OUT:-out} STATE=${STATE:-/tmp/gamegen-state}
export TORCHINDUCTOR_CACHE_DIR=$STATE/inductor TRITON_CACHE_DIR=$STATE/triton
export PYTORCH_ALLOC_CONF=expandable_segments:True PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
mkdir -p "$OUT" "$STATE"
python=${PYTHON:-python3}
begin=$(date +%s)
end=$(awk "BEGIN { print int($begin + 60 * $minutes - 8) }")
gpus=$("$python" -c "import torch; print(max(1, torch.cuda.device_count()))")
[ "${GAMEGEN_SMALL:-0}" = 1 ] && gpus=${PROCESSES:-1}
last=$((gpus - 1))
echo "$gpus processes, $((end - begin)) s"

left() { echo $((end - $(date +%s) - $1)); } # left RESERVE: seconds until RESERVE seconds before the end

# together SCRIPT ARGUMENT...: one process a GPU; fails where one fails, and then ends the others.
together() {
    pids=
    rank=0
    while [ "$rank" -lt "$gpus" ]; do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$gpus MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 "$python" "$@" &
        pids="$pids $!"
        rank=$((rank + 1))
    done
    for pid in $pids; do
        wait "$pid" || { kill $pids 2>/dev/null; wait; return 1; }
    done
}

# train SCRIPT UNTIL ARGUMENT...: a failed run goes on from its last state, not compiled and with a smaller batch.
train() {
    script=$1 until=$2
    shift 2
    together "$here/$script" --until "$until" "$@" && return
    [ "$until" -gt "$(date +%s)" ] || return
    echo "$script failed; once more without recorded passes" >&2
    together "$here/$script" --until "$until" "$@" --graph 0 && return
    [ "$until" -gt "$(date +%s)" ] || return
    echo "$script failed; once more without compilation" >&2
    safe="--compile 0 --graph 0"
    [ "${GAMEGEN_SMALL:-0}" = 1 ] || safe="$safe --batch 24"
    together "$here/$script" --until "$until" "$@" $safe
}

# The renderer is compiled once, before processes race for it.
"$python" -c "import sys; sys.path.insert(0, '$here'); from gamegen.world import build; import torch
print(build(torch.cuda.is_available()))" || exit 1

perception() {
    trial=${TRIAL_SECONDS:-95}
    m=$(awk "BEGIN { print ($(left "$trial")) / 60 }")
    base=$STATE/base
    rm -rf "$base"
    cp -r "$start" "$base"
    CUDA_VISIBLE_DEVICES=0 "$python" "$here/train_vae.py" --start "$start" --minutes "$m" ${VAE:-} &
    vae=$!
    CUDA_VISIBLE_DEVICES=$last "$python" "$here/train_judges.py" --minutes "$m" --out "$OUT" ${JUDGES:-} &
    judges=$!
    CUDA_VISIBLE_DEVICES=$last "$python" "$here/train_text.py" train --teacher "$TEACHER" --out "$base" ${TEXT:-}
    echo "text encoder: status $?"
    wait $vae
    echo "autoencoder: status $?"
    wait $judges
    echo "judges: status $?"
    [ -d "$OUT/judges" ] && cp -r "$OUT/judges" "$base/"
    [ -d "$STATE/model-vae/vae" ] && rm -rf "$base/vae" && cp -r "$STATE/model-vae/vae" "$base/vae"
    tar cf "$STATE/perception.tar" -C "$base" vae text_encoder tokenizer judges
    split -b 15M -d -a 1 "$STATE/perception.tar" "$OUT/perception.tar."
    train train_foundation.py $((end - 5)) --start "$base" --state "$STATE/trial" --to-fraction 0.05 --reserve 4 \
        ${FOUNDATION:-}
    rm -rf "$OUT"/model.tar.* "$OUT/judges"
}

# judge MINUTES PARTS: goes on with some judges in the background.
judge() {
    [ "$1" = 0 ] && return
    CUDA_VISIBLE_DEVICES=$last "$python" "$here/train_judges.py" --parts "$2" --start "$start/judges" --lr 1e-3 \
        --minutes "$1" --reserve 25 --stills 8192 --pool-start 8192 --out "$OUT" &
}

# judges: goes on with the judges beside the compiler, which leaves the last GPU idle.
judges() {
    judges=$STATE/judges
    rm -rf "$judges" "$OUT/judges"
    cp -r "$start/judges" "$judges"
    cp -r "$start/judges" "$OUT/judges"
    judge "${JUDGES_MINUTES:-0}" attributes,pose
    judge "${KEYS_MINUTES:-2.4}" keys
}

# evaluate SECONDS PARTS_OF_THE_FIRST_GPU PARTS_OF_THE_LAST: the exported model by the judges of this run.
evaluate() {
    wait
    model=$STATE/model
    cp "$start/evaluation.json" "$model/"
    [ -d "$OUT/judges" ] && rm -rf "$judges" && mv "$OUT/judges" "$judges"
    rm -rf "$model/judges" && cp -r "$judges" "$model/judges"
    tar cf "$OUT/judges.tar" -C "$STATE" judges
    seconds=$1
    echo "evaluation: $seconds s"
    CUDA_VISIBLE_DEVICES=0 "$python" "$here/eval.py" run "$model" --out "$OUT/long" --seconds "$seconds" \
        --parts "$2" --renderer 0 &
    long=$!
    CUDA_VISIBLE_DEVICES=$last "$python" "$here/eval.py" run "$model" --out "$OUT/short" --seconds "$seconds" \
        --parts "$3"
    wait $long
    "$python" "$here/eval.py" merge "$OUT/eval.json" "$OUT"/*/eval.json
}

case $plan in
perception) perception ;;
foundation)
    judges
    train train_foundation.py $((end - ${QUICK_SECONDS:-40})) --start "$start" --to-fraction "${TO:-0.7}" \
        --reserve 6 ${FOUNDATION:-}
    evaluate "$(left 8)" "${LONG_PARTS:-drift_60s}" "${PARTS:-keys,words}"
    ;;
finish)
    judges
    train train_foundation.py $((end - ${EVAL_SECONDS:-135})) --start "$start" --from-fraction "${FROM:-0.66}" \
        --freeze-from "${FREEZE:-0.55}" --large-from 2 --p-event 0.65 --p-video 0.4 --reserve 6 ${FOUNDATION:-}
    evaluate "$(left 8)" "${LONG_PARTS:-drift_60s,drift_10min}" \
        "${PARTS:-keys,words,alignment,reconstruction,video,pictures,frechet,steps}"
    ;;
*)
    echo "unknown plan: $plan" >&2
    exit 64
    ;;
esac
status=$?
# Everything small in one file: logs, tables, pictures, clips.
(cd "$OUT" && tar czf "$STATE/report.tar.gz" $(ls | grep -v '\.tar') && rm -rf $(ls | grep -v '\.tar') &&
    mv "$STATE/report.tar.gz" .)
ls -l "$OUT"
exit $status
