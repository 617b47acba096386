#!/usr/bin/env bash
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of cmae test]
# Several machines: the same on each, with NNODES, NODE_RANK, MASTER_ADDR, PORT.
set -euo pipefail
usage='usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of cmae test]'
if [ $# -lt 3 ]; then echo "$usage" >&2; exit 2; fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
shift 3
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
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
