#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG GPUS [options of cmae train]
# SIGTERM (or SIGUSR1) and Ctrl-C end it with a checkpoint, and with status 75
# and 130.
# Several machines: the same on each, with NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
usage='usage: tools/dist_train.sh CONFIG GPUS [options of cmae train]'
if [ $# -lt 2 ]; then echo "$usage" >&2; exit 2; fi
CONFIG=$1
GPUS=$2
shift 2
case $GPUS in
    '' | *[!0-9]* | 0) echo "$0: the number of GPUs must be 1 or more, but got" \
        "'$GPUS'; $usage" >&2; exit 1 ;;
esac

NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
# On one machine any free port will do, and several jobs get along.
if [ "$NNODES" = 1 ]; then PORT=${PORT:-free}; else PORT=${PORT:-29500}; fi

exec python "$(dirname "$0")/dist_run.py" \
    --nnodes="$NNODES" --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" --master_port="$PORT" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
