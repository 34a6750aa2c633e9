#!/bin/bash
# SiT-XL/2 + REG on ImageNet 256 x 256.
#
#   sbatch launchers/imagenet_sit_xl.sh data.root=/path/to/imagenet/train [key=value ...]
#   sbatch --nodes=4 --partition=big launchers/imagenet_sit_xl.sh name=xl4 ...
#
# Asks for     1 node, 8 GPUs and 8 tasks a node, 12 CPUs a task, all memory, 48 hours
# Stops        600 seconds before the end, saves, and requeues itself
#SBATCH --job-name=imagenet_sit_xl
#SBATCH --nodes=1
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
launch train configs/imagenet_sit_xl.yaml "$@"
