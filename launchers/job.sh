# shellcheck shell=bash
# What the launchers share; each sources it. sbatch runs a copy of a launcher from a spool folder, so
# everything is found through SLURM_SUBMIT_DIR: submit from the root of the repository.
#
#   launch COMMAND [argument ...]    runs `python -m regscale.COMMAND` with one task for each GPU, and
#                                    ends this script: done, failed, or requeued (docs/slurm.md)

set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?a launcher is submitted: sbatch launchers/NAME.sh}" || exit 1
export REGSCALE_JOB="${REGSCALE_JOBS:-$PWD/runs/.slurm}/$SLURM_JOB_ID"
export REGSCALE_STOP_FILE="$REGSCALE_JOB/stop"
restart=${SLURM_RESTART_COUNT:-0}

# Slurm's warning comes to this shell alone. The trap holds only builtins: bash 5.2 can lose one of
# two signals where a trap starts a process. TERM has none, so that scancel stays the end.
warned=
trap 'warned=1; : > "$REGSCALE_STOP_FILE"' USR1

((restart)) || rm -rf "$REGSCALE_JOB" # an id that Slurm gives a second time
mkdir -p "$REGSCALE_JOB" || exit 1
[[ $warned ]] || rm -f "$REGSCALE_STOP_FILE"
echo "$restart" > "$REGSCALE_JOB/restart"

set +u # modules and environments read unset variables as they are activated
# shellcheck source=/dev/null
if [[ -f launchers/site.env ]]; then source launchers/site.env; fi
set -u

options=(--kill-on-bad-exit=1) inside=() through=()
[[ ${SLURM_CPUS_PER_TASK:-} ]] && options+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # not inherited
case "${REGSCALE_ENV:=.venv}" in
  *.sif) python=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$REGSCALE_ENV" python3) ;;
  *.sqsh | *'#'*)
    inside=("--container-image=$REGSCALE_ENV" "--container-workdir=$PWD"
      "--container-mounts=$PWD:$PWD${REGSCALE_MOUNTS:+,$REGSCALE_MOUNTS}")
    python=(python3) ;;
  *) python=("$REGSCALE_ENV/bin/python") ;;
esac

# Where Slurm may start one task a node, torchrun starts the others. Its port is not the ranks' own.
if [[ ${REGSCALE_TORCHRUN:-} ]]; then
  through=(-m torch.distributed.run "--nnodes=$SLURM_NNODES" "--nproc-per-node=$REGSCALE_TORCHRUN"
    "--rdzv-id=$SLURM_JOB_ID" --rdzv-backend=c10d
    "--rdzv-endpoint=$(scontrol show hostnames | head -n 1):$((30000 + (SLURM_JOB_ID + 101 * restart) % 2000))")
fi

launch() {
  local job status
  [[ $warned ]] && : > "$REGSCALE_STOP_FILE" # it came before the folder was there
  echo "job $SLURM_JOB_ID, restart $restart, on $SLURM_JOB_NODELIST: ${*@Q}"
  srun "${options[@]}" "${inside[@]}" "${python[@]}" "${through[@]}" -m regscale.slurm task "$@" &
  job=$!
  outlive "$job" &
  while :; do # a trapped signal ends wait before srun ends
    wait "$job"
    status=$?
    kill -0 "$job" 2> /dev/null || break
  done
  finish "$status"
}

# srun waits for ever for the tasks of a node that was off so shortly that Slurm did not notice. When
# a task has left word of the end, the others have this long.
outlive() {
  local seconds=0
  trap - USR1
  while kill -0 "$1" 2> /dev/null; do
    sleep 5
    if [[ -d $REGSCALE_JOB/failures-$restart || -e $REGSCALE_JOB/outcome-$restart.json ]]; then
      ((seconds += 5))
    fi
    if ((seconds > ${REGSCALE_END_SECONDS:-120})); then
      echo "restart $restart: srun has not ended $seconds s after the first task: killed" >&2
      kill -KILL "$1"
    fi
  done
}

# What the tasks left behind decides, not srun's status: a task that was told to stop ends with 0.
finish() {
  local facts preempted=() once=()
  facts=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2> /dev/null)
  if [[ $facts && (! $facts =~ JobState=(RUNNING|SIGNALING) || $facts != *" Restarts=$restart "*) ]]; then
    echo "restart $restart: Slurm has ended this incarnation, and will end this script"
    sleep 600 # its exit status would be taken for that of the next incarnation
    exit 1
  fi
  [[ $facts =~ PreemptTime=[0-9] ]] && preempted=(--preempted)
  [[ ${inside[*]} ]] && once=(srun --ntasks=1 --nodes=1 --overlap "${inside[@]}")
  "${once[@]}" "${python[@]}" -m regscale.slurm after "$1" "${preempted[@]}"
  case $? in
    75) requeue "$facts" ;;
    0) exit 0 ;;
    *) exit 1 ;;
  esac
}

requeue() {
  local exclude already tries
  trap '' TERM # requeueing ends this script, and the nodes to avoid come after it
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    echo "Slurm does not requeue here: submit again, or chain jobs (docs/slurm.md)." >&2
    exit 1
  fi
  exclude=$(cat "$REGSCALE_JOB/exclude" 2> /dev/null) || exit 0
  already=$(grep -o 'ExcNodeList=[^ ]*' <<< "$1" | cut -d= -f2)
  [[ ${already:-(null)} == "(null)" ]] || exclude+=",$already"
  for tries in 1 2 3 4 5; do
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$exclude" && exit 0
    echo "excluding $exclude: try $tries failed" >&2
    sleep 1
  done
  exit 1
}
