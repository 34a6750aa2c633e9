#!/bin/bash
# Handwritten digits on CPUs: shows in two minutes that jobs start, stop, go on and finish here.
#
#   sbatch launchers/digits.sh [key=value ...]
#
# Asks for     2 nodes, 2 tasks a node, 2 CPUs a task, 30 minutes
# Stops        180 seconds before the end, saves, and requeues itself
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=2
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:?submit with sbatch}/launchers/job.sh"
launch train configs/digits.yaml device=cpu engine.kind=fsdp2 "$@"
