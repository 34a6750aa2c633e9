#!/bin/bash
# Encode the pictures of shards on many GPUs; any command of regscale.prepare goes on where it was.
#
#   sbatch launchers/prepare.sh encode configs/t2i.yaml /data/cc12m-png --out /data/cc12m
#   sbatch --nodes=4 launchers/prepare.sh ...
#
# Asks for     1 node, 8 GPUs and 8 tasks a node, 12 CPUs a task, all memory, 24 hours
# Stops        600 seconds before the end, saves, and requeues itself
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:?submit with sbatch}/launchers/job.sh"
launch prepare "$@"
