#!/bin/bash
# Text to image: configs/t2i.yaml, or another config that comes first.
#
#   sbatch launchers/t2i.sh [configs/t2i_2b.yaml] [key=value ...]
#   sbatch --nodes=4 --partition=big launchers/t2i.sh name=big ...
#
# Asks for     2 nodes, 8 GPUs and 8 tasks a node, 12 CPUs a task, all memory, 48 hours
# Stops        600 seconds before the end, saves, and requeues itself
#SBATCH --job-name=t2i
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:?submit with sbatch}/launchers/job.sh"
[[ ${1:-} == *.yaml ]] || set -- configs/t2i.yaml "$@"
launch train "$@"
