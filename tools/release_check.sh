#!/usr/bin/env bash
# Checks on a GPU before a release: tests, speed of a step, short trainings in
# half precision. Writes a report; exit status 1 if a step failed.
# Usage: bash tools/release_check.sh [--device cuda|cpu] [--out DIR] [--short]
#   --device cpu  only the checks without a GPU (default: cuda)
#   --out DIR     folder of report and logs (default: work_dirs/release_check)
#   --short       a few steps of each, to test the script itself
set -euo pipefail
cd "$(dirname "$0")/.."
device=cuda out=work_dirs/release_check short=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --short) short=1; shift ;;
        *) echo "release_check.sh: unknown argument $1; see the head of the" \
            "script" >&2; exit 2 ;;
    esac
done
case $device in
    cuda) python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "release_check.sh: torch finds no CUDA device; --device cpu" \
            "runs the checks without a GPU" >&2
        exit 2
    } ;;
    cpu) export CUDA_VISIBLE_DEVICES= ;;
    *) echo "release_check.sh: --device must be cuda or cpu, but got $device" >&2
        exit 2 ;;
esac
iterations=300 rounds=10 batch=64 config=configs/cmae_vit-b_300e.py
[ "$device" = cuda ] || { batch=4 rounds=3; }
[ -z "$short" ] || {
    iterations=2 rounds=1 batch=4
    config=configs/quickstart/cmae_vit-mini_tiles.py
}
mkdir -p "$out"
report=$out/report.md
failed=0
{
    echo "# Release check, $(date -u '+%Y-%m-%d %H:%M') UTC"
    echo
    echo "cmae_mm $(python -m cmae_mm --version | tail -1), commit" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown), device $device"
    echo
    echo '| step | result | seconds |'
    echo '|---|---|---|'
} >"$report"

# check NAME COMMAND... : run it, keep its output, note the result
check() {
    local name=$1 start=$SECONDS result=passed
    shift
    echo "== $name"
    "$@" >"$out/$name.log" 2>&1 || {
        result="**failed** (status $?), [log]($name.log)"
        failed=1
        tail -5 "$out/$name.log" >&2
    }
    echo "| $name | $result | $((SECONDS - start)) |" >>"$report"
}
left_out() {
    echo "== $1: left out, $2"
    echo "| $1 | left out: $2 | |" >>"$report"
}
train() {
    python tools/train.py configs/quickstart/cmae_vit-mini_tiles.py \
        --work-dir "$out/train_$1" --no-resume --cfg-options \
        "optim_wrapper.dtype=$1" \
        "train_cfg.max_iters=$iterations" default_hooks.logger.interval=1 \
        train_dataloader.batch_size="${2:-128}"
}

if [ "$device" = cuda ]; then
    check gpu_tests bash tools/check_gpu.sh
else
    left_out gpu_tests "no GPU"
fi
check doctor python -m cmae_mm doctor
check step python tools/benchmarks/benchmark_step.py "$config" --baseline \
    --batch-size "$batch" --rounds "$rounds" --device "$device" \
    --json "$out/step.json"
[ -n "$short" ] || check step_compiled python tools/benchmarks/benchmark_step.py "$config" \
    --compile --batch-size "$batch" --rounds "$rounds" --device "$device" \
    --json "$out/step_compiled.json"
check tiles python tools/quickstart/make_tiles.py "$out/tiles" \
    ${short:+--train 40 --val 20}
export DATA_ROOT=$out/tiles/train
check train_bfloat16 train bfloat16 ${short:+8}
if [ "$device" = cuda ]; then
    check train_float16 train float16 ${short:+8}
else
    left_out train_float16 "float16 needs a GPU"
fi
{
    echo
    for log in step step_compiled; do
        [ -f "$out/$log.log" ] || continue
        echo "## $log"
        echo '```'
        tail -25 "$out/$log.log"
        echo '```'
    done
} >>"$report"
echo "$report"
exit "$failed"
