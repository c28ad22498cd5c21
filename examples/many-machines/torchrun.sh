#!/usr/bin/env bash
# A recipe on several hosts; the same on each: JOB=night FIRST_HOST=node1 ./torchrun.sh RECIPE fit [options]
# HOSTS (2) are as many, each with RANKS (1) processes, one for each of its GPUs. torchrun has more options, as
# variables too: PET_LOCAL_ADDR is --local-addr.
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="${HOSTS:=2}" --nproc-per-node="${RANKS:=1}" \
    --rdzv-id="${JOB:?names the training}" --rdzv-backend=c10d --rdzv-endpoint="${FIRST_HOST:?is one of them}:29400" \
    --max-restarts="${RESTARTS:-3}" \
    -m rnn_blocks.recipes "$@" \
    --trainer.num_nodes "$HOSTS" --trainer.devices "$RANKS" --trainer.strategy ddp
