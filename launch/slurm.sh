#!/usr/bin/env bash
# ITIT on several nodes under Slurm: one torchrun a node, which starts a process a GPU. The job is sent SIGTERM before its
# time is over, saves, and goes on where it stopped when it is queued again (sbatch --requeue, or the same command).
#
#     sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh --flagfile=FILE --workdir=DIR [--flag=value ...]
#
# From the root of the repository; `workdir` is on a disk that all nodes share, or on gs://.
#SBATCH --job-name=itit
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail
case " $* " in *" --help "* | *" -h "*)
    sed -n '2,/^#SBATCH/s/^#\( \|$\)//p' "$0"
    exit 0 ;;
esac

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun .venv/bin/torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$first:29500" \
    -m itit.train "$@"
