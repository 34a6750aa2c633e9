"""A real Slurm of several nodes on one machine: munged, slurmctld and a slurmd for each node.

    with Lab(folder) as lab:
        job = lab.submit("launchers/digits.sh", "name=a b")
        lab.wait(job, lambda facts: facts["JobState"] == "COMPLETED")

Every node, and the controller, is a set of namespaces (host name, mounts, processes, network) that
lives as long as its first process. That process dies with this one, so nothing is left behind: no
daemon, no task, no network device, whatever becomes of the test. Needs root on Linux.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
PACKAGES = "slurm-wlm munge iproute2 util-linux"
FREEZER = Path("/sys/fs/cgroup/freezer")
GPUS = 8
PORT = 17800
CONTROL = "ctl"

CONF = """\
ClusterName=lab
SlurmctldHost=ctl(10.7.0.1)
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its credential to expire: minutes by default.
AuthInfo=socket={lab}/sock/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool.%n
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
ProctrackType={tracking}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
PropagateResourceLimits=NONE
ReturnToService=2
# Two cores pose as 128 with 2 TB, so that a launcher's header is accepted as it is.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
# Every node is asked by the controller itself: a node that is off delays no other one's answer.
TreeWidth=65533
KillWait=5
SlurmdTimeout=10
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
ConstrainDevices=no
"""
# The first process of a node only reaps; without it all processes of the node end.
INIT = """
hostname {name}
mount --bind {lab}/hosts /etc/hosts
{freezer}
trap '' TERM INT HUP
: > {lab}/run/booted.{name}
while :; do sleep 1000 & wait $!; done
"""


def missing() -> str:
    """Why there can be no lab here; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "a Slurm lab needs Linux"
    if os.geteuid() != 0:
        return "a Slurm lab needs root, for namespaces"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"{', '.join(absent)} missing: apt-get install --no-install-recommends {PACKAGES}"
    tried = subprocess.run(
        ["unshare", "--uts", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True
    )
    return f"no namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else ""


class Lab:
    """A cluster for as long as the block; `folder` needs a short path that every user may enter."""

    def __init__(self, folder: Path, *, num_nodes: int = 2) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._freezer = FREEZER / f"lab-{os.getpid()}" if FREEZER.is_dir() else None
        self._environment = {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": os.environ.get("HOME", "/root"),
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    # Up and down

    def __enter__(self) -> Lab:
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def _up(self) -> None:
        self._configure()
        for name in (CONTROL, *self.nodes):
            self._boot(name)
        self._network("ip link set lo up; ip link add br0 type bridge; ip link set br0 up")
        self._network(f"ip addr add {self._address(CONTROL)}/24 dev br0")
        for name in self.nodes:
            self._plug(name)
        lab = self.folder
        self.on(CONTROL, "mungekey", "--create", f"--keyfile={lab}/keys/munge.key")
        self.on(
            *(CONTROL, "munged", f"--key-file={lab}/keys/munge.key"),
            *(f"--socket={lab}/sock/munge.socket", f"--pid-file={lab}/keys/munged.pid"),
            *(f"--log-file={lab}/log/munged.log", f"--seed-file={lab}/keys/munged.seed"),
        )
        self.on(CONTROL, "slurmctld")
        for name in self.nodes:
            self.start_slurmd(name)
        self.until(lambda: self.node_states() == ["idle"] * len(self.nodes), "all nodes are idle")

    def down(self) -> None:
        """End everything, unasked; the folder with its logs stays."""
        for name in list(self._holders):
            self.power_off(name)
        if self._freezer is not None and self._freezer.is_dir():
            self.until(lambda: not self._survivors(), "the last process is gone")
            for path in sorted(self._freezer.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            self._freezer.rmdir()

    def _survivors(self) -> str:
        """Processes that Slurm started; those of a node that is off take a moment to end."""
        assert self._freezer is not None, "there are cgroups"
        return "".join(path.read_text() for path in self._freezer.rglob("cgroup.procs"))

    def _configure(self) -> None:
        lab = self.folder
        for name in ("state", "log", "run", "keys", "sock", "dev"):
            (lab / name).mkdir(parents=True, exist_ok=True)
        (lab / "keys").chmod(0o700)
        (lab / "sock").chmod(0o755)
        for number in range(GPUS):  # only character devices become CUDA_VISIBLE_DEVICES
            (lab / f"dev/nvidia{number}").symlink_to("/dev/null")
        names = [(self._address(name), name) for name in (CONTROL, *self.nodes)]
        text = "".join(f"{address} {name}\n" for address, name in names)
        (lab / "hosts").write_text(f"127.0.0.1 localhost\n{text}")
        tracking = "proctrack/cgroup" if self._freezer else "proctrack/linuxproc"
        conf = CONF.format(lab=lab, port=PORT, slurmd_port=PORT + 1, tracking=tracking)
        lines = [
            f"NodeName={name} NodeAddr={self._address(name)} CPUs=128 RealMemory=2000000 "
            f"Gres=gpu:{GPUS} State=UNKNOWN\n"
            for name in self.nodes
        ]
        (lab / "slurm.conf").write_text(conf + "".join(lines))
        (lab / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=n[1-{len(self.nodes)}] Name=gpu "
            f"File={lab}/dev/nvidia[0-{GPUS - 1}]\n"
        )
        if self._freezer:
            (lab / "cgroup.conf").write_text(CGROUP)
            self._freezer.mkdir(exist_ok=True)

    def _boot(self, name: str) -> None:
        booted = self.folder / f"run/booted.{name}"
        booted.unlink(missing_ok=True)
        freezer = f"mount --bind {self._freezer} {FREEZER}" if self._freezer else ":"
        init = INIT.format(name=name, lab=self.folder, freezer=freezer)
        spaces = ("--uts", "--mount", "--pid", "--net", "--fork", "--mount-proc")
        self._holders[name] = subprocess.Popen(
            ["unshare", *spaces, "--kill-child=KILL", "bash", "-c", init],
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / f"log/init.{name}").open("ab"),
            stderr=subprocess.STDOUT,
            env=self._environment,
            preexec_fn=_die_with_parent,
            start_new_session=True,
        )
        self.until(booted.exists, f"{name} boots", seconds=10)

    def _plug(self, name: str) -> None:
        self._network(f"ip link del {name} 2> /dev/null || true")  # of a node that was off
        self._network(f"ip link add {name} type veth peer name eth0 netns {self._first(name)}")
        self._network(f"ip link set {name} master br0 up")
        address = self._address(name)
        up = f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up"
        self.on(name, "bash", "-ec", up)

    def _network(self, commands: str) -> None:
        """In the controller's network, but with this machine's process numbers."""
        inside = ["nsenter", "-n", "-t", str(self._first(CONTROL)), "bash", "-ec", commands]
        subprocess.run(inside, check=True, capture_output=True, env=self._environment)

    def _address(self, name: str) -> str:
        return "10.7.0.1" if name == CONTROL else f"10.7.0.{10 + self.nodes.index(name)}"

    def _first(self, name: str) -> int:
        """The first process of a node, as this machine numbers it."""
        holder = self._holders[name].pid
        return int(Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0])

    # What happens to nodes

    def power_off(self, name: str) -> None:
        holder = self._holders.pop(name)
        holder.kill()
        holder.wait()

    def power_on(self, name: str) -> None:
        self._boot(name)
        self._plug(name)
        self.start_slurmd(name)

    def start_slurmd(self, name: str) -> None:
        (self.folder / f"run/slurmd.{name}.pid").unlink(missing_ok=True)
        self.on(name, "slurmd", "-N", name)

    def kill_slurmd(self, name: str) -> None:
        pid = (self.folder / f"run/slurmd.{name}.pid").read_text().strip()
        self.on(name, "kill", "-KILL", pid)

    def on(self, name: str, *command: str, folder: Path | None = None, **environment: str) -> str:
        """What a command prints that runs on a node; a failure raises with what it said."""
        inside = ["nsenter", "-m", "-u", "-p", "-n", "-t", str(self._first(name))]
        change = ["bash", "-c", 'cd "$0" && exec "$@"', str(folder or "/"), *command]
        done = subprocess.run(
            inside + change,
            capture_output=True,
            text=True,
            timeout=180,  # of a command that hangs; a busy machine is slow
            env=self._environment | environment,
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def tasks(self, name: str, word: str = "regscale.slurm task") -> list[int]:
        """Processes of a node whose command line has a word, as the node numbers them."""
        found = []
        for line in self.on(name, "ps", "-eo", "pid=,args=").splitlines():
            pid, _, command = line.strip().partition(" ")
            if word in command and "srun" not in command and "bash" not in command:
                found.append(int(pid))
        return found

    # Jobs

    def submit(
        self,
        launcher: str,
        *arguments: str,
        folder: Path,
        options: Sequence[str] = (),
        **environment: str,
    ) -> str:
        """The id of a job submitted from `folder`."""
        command = ("sbatch", "--parsable", *options, launcher, *arguments)
        return self.on(CONTROL, *command, folder=folder, **environment).strip()

    def job(self, job: str) -> dict[str, str]:
        """What Slurm says about a job."""
        text = self.on(CONTROL, "scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait(
        self, job: str, ready: Callable[[dict[str, str]], bool], what: str, seconds: float = 300
    ) -> dict[str, str]:
        """Its facts as soon as they are as wished."""
        self.until(lambda: ready(self.job(job)), f"{what}: {self.job(job)}", seconds=seconds)
        return self.job(job)

    def node_states(self) -> list[str]:
        try:
            return self.on(CONTROL, "sinfo", "-h", "-N", "-p", "main", "-o", "%T").split()
        except AssertionError:  # the controller still starts
            return []

    def until(self, ready: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"{seconds} s passed before: {what}"
            time.sleep(0.1)


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
