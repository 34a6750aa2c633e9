#!/bin/bash
# Draw and judge the pictures of a suite on many GPUs; what is drawn is not drawn again.
#
#   sbatch launchers/evaluate.sh runs/imagenet_sit_xl --suite imagenet256 num_samples=50000
#   sbatch --nodes=4 launchers/evaluate.sh ...
#
# Asks for     1 node, 8 GPUs and 8 tasks a node, 12 CPUs a task, all memory, 12 hours
# Stops        180 seconds before the end, saves, and requeues itself
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

source "${SLURM_SUBMIT_DIR:?submit with sbatch}/launchers/job.sh"
launch evaluate "$@"
