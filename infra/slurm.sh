#!/usr/bin/env bash
# One sweep on a Slurm allocation: a Ray head on its first node, workers on the others, all gone when it ends.
#
#   sbatch infra/slurm.sh sweeps/bias_in_bios.yaml /shared/runs [--set PATH=VALUE ...]
#
# Five minutes before the time limit the sweep is ended cleanly; the same command goes on where it was.
#SBATCH --job-name=sdm-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -euo pipefail
file=${1:?a sweep file}; runs=${2:?a folder that all nodes see}; shift 2
. .venv/bin/activate

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN    # reaches the other nodes through srun's environment, and no file

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((10000 + SLURM_JOB_ID % 20000))
srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}" \
  ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false --block &
sleep 20
if (( ${#nodes[@]} > 1 )); then
  srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) -x "${nodes[0]}" \
    ray start --address="$address:$port" --block &
  sleep 20
fi

name=$(python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1])).get("name", "sweep"))' "$file")
resume=(); if [[ -e $runs/$name/sweep.yaml ]]; then resume=(--resume); fi
sdm-ray sweep "$file" --set resources.ray_address="$address:$port" --set output_dir="$runs" "$@" "${resume[@]}" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0; wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || code=$?; done    # `wait` returns early when the trap runs
kill %1 %2 2>/dev/null || true
exit "$code"
