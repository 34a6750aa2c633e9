#!/bin/bash
# Draw a file of prompts or classes on many GPUs; what is drawn is not drawn again.
#
#   sbatch launchers/sample.sh --checkpoint runs/t2i --prompts prompts.jsonl --out /data/pictures
#   (of a run that goes on: --checkpoint runs/t2i/checkpoints/step-00100000, docs/sampling.md)
#   sbatch --nodes=4 launchers/sample.sh ...
#
# Asks for     1 node, 8 GPUs and 8 tasks a node, 12 CPUs a task, all memory, 24 hours
# Stops        180 seconds before the end, saves, and requeues itself
#SBATCH --job-name=sample
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:?submit with sbatch}/launchers/job.sh"
launch sample "$@"
