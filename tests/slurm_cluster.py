"""A real Slurm cluster of two nodes on this machine, for as long as a test takes.

munged, slurmctld and two slurmd run as root, everything they write lies under one directory, and
they listen on 127.0.0.1 only.  GPUs are made up: plain files that Slurm counts.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ports import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "srun")
NODES = 2

CONFIGURATION = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes={nodes} PriorityTier=10 MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1"
    " SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=2000 Gres=gpu:4"
    " State=UNKNOWN\n"
)


def why_not() -> str | None:
    """Why no cluster can be started here, or None if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}); apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root, and this is not root"
    return None


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        base: the directory of everything that it writes.
    """

    base: Path

    def environment(self) -> dict[str, str]:
        """What its commands need; nothing of a surrounding job."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return kept | {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": _path()}

    def call(self, *command: str) -> str:
        """Run a command of Slurm; gives what it printed."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, folder: Path, *words: str, **variables: str) -> int:
        """Submit a batch file from a folder; gives the number of the job."""
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=folder,
            env=self.environment() | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def tasks(self, job: int) -> dict[int, dict[str, str]]:
        """What Slurm knows of each task of a job array, by its index."""
        lines = self.call("scontrol", "--oneliner", "show", "job", str(job)).splitlines()
        # A value may hold spaces; those that are read here do not.
        fields = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
        return {
            int(task["ArrayTaskId"]): task
            for task in fields
            if task.get("ArrayTaskId", "").isdecimal()
        }

    def processes(self, **variables: str) -> list[int]:
        """Processes that the cluster has started, its daemons among them.

        Args:
            variables: what their environment holds.
        """
        wanted = {"SLURM_CONF": f"{self.base}/slurm.conf", **variables}
        words = {f"{name}={value}".encode() for name, value in wanted.items()}
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                # It may have ended meanwhile.
                with contextlib.suppress(OSError):
                    if words <= set((folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found


@contextlib.contextmanager
def running(base: Path) -> Iterator[Cluster]:
    """Start a cluster whose files lie under ``base``; end all of it in any case."""
    cluster = _configure(base)
    daemons: list[subprocess.Popen] = []
    try:
        munge = base / "munge"
        _start(
            cluster,
            daemons,
            "munged",
            "--foreground",
            "--force",
            "--num-threads=2",
            *[f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid"],
            *[f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        )
        _wait(lambda: (munge / "socket").exists(), "munged did not start")
        _start(cluster, daemons, "slurmctld", "-D", "-f", f"{base}/slurm.conf")
        for number in range(1, NODES + 1):
            node = f"127.0.0.{number}"
            _start(cluster, daemons, "slurmd", "-D", "-f", f"{base}/slurm.conf", "-N", node)
        _wait(lambda: _idle_nodes(cluster) == NODES, "the nodes did not come up")
        yield cluster
    finally:
        _stop(cluster, daemons)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _configure(base: Path) -> Cluster:
    for name in ("munge", "state", "log", "dev"):
        (base / name).mkdir(parents=True)
    # munged wants its socket's directory to be open to all, and its key to be open to nobody.
    for name in (base, base / "munge"):
        name.chmod(0o755)
    key = base / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    for number in range(4):
        (base / "dev" / f"gpu{number}").touch()
    host = socket.gethostname().partition(".")[0]
    nodes = f"127.0.0.[1-{NODES}]"
    text = CONFIGURATION.format(host=host, port=free_port(), base=base, nodes=nodes)
    for number in range(1, NODES + 1):
        text += NODE.format(name=f"127.0.0.{number}", host=host, port=free_port())
    (base / "slurm.conf").write_text(text)
    (base / "gres.conf").write_text(f"NodeName={nodes} Name=gpu File={base}/dev/gpu[0-3]\n")
    return Cluster(base)


def _start(cluster: Cluster, daemons: list[subprocess.Popen], *command: str) -> None:
    with open(cluster.base / "log" / "output", "a") as output:
        daemons.append(
            subprocess.Popen(
                command,
                env=cluster.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        )


def _idle_nodes(cluster: Cluster) -> int:
    """How many nodes can be given to a job; none while the controller does not answer."""
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", "--partition=main"]
    done = subprocess.run(command, env=cluster.environment(), capture_output=True, text=True)
    return len(done.stdout.split())


def _stop(cluster: Cluster, daemons: Sequence[subprocess.Popen]) -> None:
    """End the jobs, then the daemons, the first one last; what does not end is killed."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        done = subprocess.run(
            ["scancel", "--user=root"],
            env=cluster.environment(),
            capture_output=True,
            timeout=20,
        )
        if done.returncode == 0:
            _wait_for_empty_queue(cluster)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in cluster.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _wait_for_empty_queue(cluster: Cluster, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        command = ["squeue", "--noheader"]
        done = subprocess.run(
            command, env=cluster.environment(), capture_output=True, text=True, timeout=20
        )
        if not done.stdout.strip():
            return
        time.sleep(0.2)


def _wait(condition: Callable[[], bool], why: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)
