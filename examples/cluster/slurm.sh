#!/bin/bash
# Workers of one study as a Slurm array. Submit it twice, once for each role:
#
#   ROLE=preview  sbatch --array=0-7 --cpus-per-task=4 examples/cluster/slurm.sh
#   ROLE=finetune sbatch --array=0-1 --gres=gpu:1 examples/cluster/slurm.sh
#
# The previewing workers share the trials out; the finetuning ones wait for what is promoted, and end
# when nothing has come for PATIENCE seconds, or for a tenth of them once all previewing ones that
# have begun have ended. (One role for all: ROLE=any.)
#
#SBATCH --job-name=task-weights
#SBATCH --time=08:00:00
# Two minutes before the time is up the worker is told: its trial is queued again and goes on from
# its last checkpoint, in this job when it is requeued.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

DEFINITION=${DEFINITION:-studies/text/optimize.py}
STUDY=${STUDY:-text}
# A database that all nodes reach; keep the password in ~/.pgpass, not here.
STORAGE=${STORAGE:-postgresql+psycopg://merge@database/merge}
# Through this folder (or s3://bucket) task runs and posteriors travel: T tasks are finetuned by T
# workers at once, and whoever comes later downloads them.
ARTIFACTS=${ARTIFACTS:-/shared/merge/artifacts}
# A folder of its own for every worker, the same when it is requeued, so that it goes on.
WORKDIR=${WORKDIR:-/scratch/$USER/merge}/$ROLE-$SLURM_ARRAY_TASK_ID
TRIALS=${TRIALS:-400}
PATIENCE=${PATIENCE:-1800}  # longer than jobs wait in the queue

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
mkdir -p "$WORKDIR"
# exec: Slurm's signal reaches the worker.
exec optuna-merge optimize "$DEFINITION" --study-name "$STUDY" --storage "$STORAGE" \
  --artifacts "$ARTIFACTS" --workdir "$WORKDIR" --role "$ROLE" --patience "$PATIENCE" \
  --n-trials $((TRIALS / ${SLURM_ARRAY_TASK_COUNT:-1})) --keep-best 5
