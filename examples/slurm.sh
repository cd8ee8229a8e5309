#!/bin/bash
# The published run on 4 nodes of 8 GPUs of 80 GB: sbatch examples/slurm.sh
# All nodes share the folders of simplerl, the model and the runs.
#SBATCH --job-name=simplerl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@600
set -euo pipefail

RECIPE=simplerl-zero-qwen2.5-math-7b
SETTINGS=(
  --set model.device=cuda
  --set engine.name=vllm
  --set engine.gpu_memory=0.9
  --set cluster.ray=auto
  --set cluster.learners=21
  --set cluster.engines=11
)
# source /shared/venv/bin/activate

nodes=$SLURM_JOB_NUM_NODES
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
address=$ip:$((20000 + SLURM_JOB_ID % 10000))
RAY_AUTH_TOKEN=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n') # for this job only; srun passes it to all nodes
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait' EXIT
size=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block)
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --node-ip-address="$ip" --port="${address#*:}" --include-dashboard=false "${size[@]}" &
started+=($!)
until ray status --address="$address" >/dev/null 2>&1; do
  kill -0 "${started[0]}" && sleep 2
done
if ((nodes > 1)); then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --overlap \
    ray start --address="$address" "${size[@]}" &
  started+=($!)
fi
timeout 600 python - "$address" "$nodes" <<'PYTHON'
import sys, time
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(2)
PYTHON

# The same command resumes from the last checkpoint. Ten minutes before its time limit the job gets SIGTERM: the run
# writes a checkpoint and ends, and the job is queued again.
export RAY_ADDRESS=$address
simplerl train "$RECIPE" --run-dir "$PWD/runs/$RECIPE" --plain "${SETTINGS[@]}" &
run=$!
stopped=
trap 'stopped=yes; kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
if [[ $stopped ]]; then # the signal ended the first wait, not the run
  code=0
  wait "$run" || code=$?
  ((code)) || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
