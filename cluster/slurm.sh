#!/usr/bin/env bash
# A search on Slurm: one Ray node on every machine of the allocation, the coordinator on the first.
#   sbatch cluster/slurm.sh SEARCH.yaml RUN
# Both on storage that all machines see. Shortly before the time limit the coordinator finishes what is being scored,
# and the job is queued again; it continues the run until the run is finished.
#SBATCH --job-name=evomerge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=evomerge-%j.log
set -euo pipefail

search=$1
run=$2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Anyone on the network who reaches the cluster could run code in it: it asks for a token that only this job knows.
RAY_AUTH_TOKEN=$(od -A n -N 32 -t x1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Seconds that the first machine waits for the others; the default of 30 is short for a large allocation.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

drained=no
# shellcheck disable=SC2329 # called by the trap
drain() {
  drained=yes
  # Where no coordinator is at work yet, there is nothing to finish.
  evomerge pause "$run" --no-wait || kill -TERM "$step"
}
trap drain USR1

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  evomerge run "$search" --out "$run" --resume --plain --set executor.address=auto &
step=$!

interrupted=$((128 + $(kill -l USR1)))
code=$interrupted
while ((code == interrupted)); do # the signal ends `wait`, not the step
  code=0
  wait "$step" || code=$?
done

if ((code != 0)) && [[ $drained == yes ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
