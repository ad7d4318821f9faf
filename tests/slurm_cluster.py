"""Run a command on a small SLURM cluster of this machine, which ends with it:

    python tests/slurm_cluster.py srun -N 2 -n 2 hostname

The cluster is Debian's slurm-wlm and munge (apt-get install slurm-wlm munge) as root: slurmctld and two
slurmd of 4 declared cores each, whose files lie in a temporary folder. Jobs of partition `high` preempt those
of `low`, the default, which are requeued.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("node1", "node2")
NAMESPACES = ("unshare", "--uts", "--mount")  # of each node
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# Within cred_expire seconds a job must start, and a requeued one waits as long.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort={ports[0]}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=node2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL PriorityTier=10
"""


def unavailable() -> str:
    """Why a cluster cannot be started here, in one line, or nothing."""
    missing = [name for name in (*DAEMONS, "srun") if not _program(name)]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode:
        return "the nodes of a SLURM here need namespaces of their own, which this system refuses"
    return ""


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start the daemons and give the variables with which srun, sbatch and scontrol find them; stop them all
    at the end. Raises RuntimeError with the reason if they do not come up.
    """
    if unavailable():
        raise RuntimeError(unavailable())
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="slurm")))
        folder.chmod(0o755)  # munged asks that everyone can reach its socket
        host = socket.gethostname()
        (folder / "state").mkdir()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=_free_ports(3)))
        variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        munge = [
            f"--{name}={folder}/munge.{file}"
            for name, file in (
                ("key-file", "key"),
                ("socket", "socket"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]
        _daemon(at_end, ["munged", "--foreground", *munge], folder, variables)
        _wait(lambda: (folder / "munge.socket").exists(), folder)
        _daemon(at_end, ["slurmctld", "-D", "-i"], folder, variables)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        for node in NODES:
            names = f"hostname {node} && mount --bind {folder}/hosts /etc/hosts && exec $0 -D -N {node}"
            slurmd = [*NAMESPACES, "sh", "-c", names, str(_program("slurmd"))]
            _daemon(at_end, slurmd, folder, variables)
        _wait(lambda: _idle_nodes(variables) == 2, folder)
        yield variables


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _daemon(at_end: ExitStack, command: list[str], folder: Path, variables: dict[str, str]) -> None:
    """Start a daemon in the foreground of its own session; `at_end` stops it."""
    program = _program(command[0])
    assert program
    with (folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    at_end.callback(stop)


def _idle_nodes(variables: dict[str, str]) -> int:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "low", "-o", "%t"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split().count("idle")


def _wait(condition: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            logs = "".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"SLURM did not start: {logs}")
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def main(command: list[str]) -> int:
    if unavailable():
        print(unavailable(), file=sys.stderr)
        return 1
    with cluster() as variables:
        return subprocess.run(command, env=os.environ | variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
