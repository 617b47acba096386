#!/usr/bin/env bash
# Usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=8 SRUN_ARGS=...] \
#        tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of cmae train]
# On SIGTERM (preemption) or SIGUSR1 (sbatch's --signal=USR1@120 before the time
# limit) training saves and exits with status 75. A job of sbatch is then
# requeued and resumes; otherwise the script prints the command that resumes.
set -euo pipefail
usage='usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of cmae train]'
if [ $# -lt 3 ]; then echo "$usage" >&2; exit 2; fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
if ! command -v srun >/dev/null; then
    echo "$0: srun was not found; run this on a machine of a Slurm cluster, or" \
        "use tools/dist_train.sh" >&2
    exit 1
fi

GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_TASK=${CPUS_PER_TASK:-8}

# A requeued job resumes from its own newest checkpoint.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    arguments=()
    for argument in "$@"; do
        [ "$argument" = --no-resume ] || arguments+=("$argument")
    done
    set -- ${arguments[@]+"${arguments[@]}"} --resume
fi

# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
srun --partition="$PARTITION" --job-name="$JOB_NAME" \
    --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$CONFIG" --launcher slurm "$@" &
step=$!
# srun hands SIGTERM on to the ranks, as sbatch does SIGUSR1 by itself, or to
# this script alone (--signal=B:USR1@120). A signal ends bash's wait, not srun.
signalled=
trap 'signalled=1; kill -TERM "$step" 2>/dev/null || true' TERM USR1
trap 'signalled=1; kill -INT "$step" 2>/dev/null || true' INT
while :; do
    signalled=
    status=0
    wait "$step" || status=$?
    [ -n "$signalled" ] || break
done

if [ "$status" -eq 75 ]; then
    if [ -n "${SLURM_JOB_ID:-}" ] && scontrol requeue "$SLURM_JOB_ID"; then
        echo "slurm_train.sh: saved; job $SLURM_JOB_ID is requeued" >&2
    else
        echo "slurm_train.sh: saved; to resume:" \
            "tools/slurm_train.sh $PARTITION $JOB_NAME $CONFIG $* --resume" >&2
    fi
fi
exit "$status"
