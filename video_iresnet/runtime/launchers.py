"""What SLURM, MPI and Kubernetes say of a process, as the variables that torchrun sets and PyTorch reads.

SLURM's variables are those of srun's manual; Open MPI's of mpirun's; PMI's those of Hydra, which starts the
processes of MPICH and Intel MPI; Kubernetes' PyTorchJob sets PyTorch's own, but none of a machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .errors import InputError


class Launcher(NamedTuple):
    """The names of a launcher's variables, and the words that start as many processes again."""

    rank: str
    size: str
    local_rank: str
    local_size: str
    words: str


TORCH = Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "torchrun --nproc-per-node {local}")
OPEN_MPI = Launcher(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "mpirun -n {size} python",
)
HYDRA = Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "mpirun -n {size} python")
SUBMITIT = Launcher(  # on one machine, without SLURM
    "SUBMITIT_LOCAL_GLOBALID",
    "SUBMITIT_LOCAL_NTASKS",
    "SUBMITIT_LOCAL_LOCALID",
    "SUBMITIT_LOCAL_NTASKS",
    "torchrun --nproc-per-node {local}",
)
# The number of tasks is the step's: in the shells of sbatch and salloc, SLURM_NTASKS is that of the job.
SLURM = Launcher(
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
    "srun --ntasks {size} python",
)
MASTER = ("MASTER_ADDR", "MASTER_PORT")
TORCH_PORT = "29500"  # torchrun's default
SLURM_PORTS = range(10000, 30000)  # below those that a system gives to outgoing connections


def torch_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are to be set for PyTorch's `env://`: those of the launcher that started this
    process, none for a single process. MASTER_ADDR and MASTER_PORT that are set already stay.

    Raises InputError if variables contradict each other or are missing.
    """
    launcher = _launcher(environment)
    if launcher is None:
        return {}
    rank, size = (_number(environment, name) for name in launcher[:2])
    if size == 1 and launcher is not TORCH:
        return {}
    # Kubernetes' PyTorchJob starts one process in each pod.
    local_rank = 0 if _has_no_machine(launcher, environment) else _number(environment, launcher.local_rank)
    local_size = _local_size(launcher, environment)
    _check_below(launcher.rank, rank, launcher.size, size)
    _check_below(launcher.local_rank, local_rank, launcher.local_size, local_size)
    if local_size > size:
        raise InputError(
            f"{launcher.local_size} is {local_size} for this machine, more than {launcher.size}, {size}"
        )
    numbers = dict(zip(TORCH, map(str, (rank, size, local_rank, local_size)), strict=False))
    for name, value, source in zip(TORCH, numbers.values(), launcher, strict=False):
        if environment.get(name, value) != value:
            raise InputError(
                f"{name} is {environment[name]!r}, but {value} by {source}; unset it, or set all of "
                f"{', '.join((*TORCH[:4], *MASTER))}"
            )
    return numbers if size == 1 else numbers | _master(launcher, environment, local_size == size)


def launcher_words(environment: Mapping[str, str]) -> list[str]:
    """Return what stands before the script in the command that starts such processes again."""
    launcher = _launcher(environment)
    size, local = (environment.get(name) for name in (launcher or TORCH)[1:4:2])
    if launcher is None or not local or (launcher is not TORCH and size == "1"):
        return ["python"]
    return launcher.words.format(size=size, local=local).split()


def first_host(nodes: str) -> str:
    """Return the first of SLURM's list of nodes, such as node03 of `node[03-05,7],login`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]


def tasks_of_nodes(tasks: str) -> list[int]:
    """Return SLURM's numbers of tasks by node, such as 4, 4 and 3 of `4(x2),3`."""
    counts: list[int] = []
    for part in tasks.split(","):
        found = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if not found:
            raise InputError(f"{SLURM.local_size} is {tasks!r}, expected numbers such as '4(x2),3'")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _launcher(environment: Mapping[str, str]) -> Launcher | None:
    if all(name in environment for name in (*TORCH[:4], *MASTER)):
        return TORCH
    if SUBMITIT.rank in environment:
        return SUBMITIT
    # SLURM last: mpirun may itself be started by srun. Hydra's PMI variables are also set by srun --mpi=pmi2.
    if OPEN_MPI.rank in environment:
        return OPEN_MPI
    if HYDRA.rank in environment and HYDRA.local_rank in environment:
        return HYDRA
    if SLURM.rank in environment and SLURM.size in environment:
        return SLURM
    if HYDRA.rank in environment:
        return HYDRA
    return TORCH if TORCH.rank in environment or TORCH.size in environment else None


def _has_no_machine(launcher: Launcher, environment: Mapping[str, str]) -> bool:
    return launcher is TORCH and not {TORCH.local_rank, TORCH.local_size} & environment.keys()


def _local_size(launcher: Launcher, environment: Mapping[str, str]) -> int:
    """Return the number of processes on this machine."""
    if _has_no_machine(launcher, environment):
        return 1
    if launcher is not SLURM:
        return _number(environment, launcher.local_size)
    tasks, node = tasks_of_nodes(_text(environment, SLURM.local_size)), _number(environment, "SLURM_NODEID")
    if sum(tasks) != _number(environment, SLURM.size):
        raise InputError(
            f"{SLURM.local_size} is {environment[SLURM.local_size]!r}, {sum(tasks)} tasks, but {SLURM.size} "
            f"is {environment[SLURM.size]}"
        )
    _check_below("SLURM_NODEID", node, f"the number of nodes in {SLURM.local_size}", len(tasks))
    return tasks[node]


def _master(launcher: Launcher, environment: Mapping[str, str], is_one_machine: bool) -> dict[str, str]:
    """Return where the processes meet: at a free port of the machine of process 0."""
    address, port = (environment.get(name, "") for name in MASTER)
    if launcher is SLURM:
        address = address or first_host(_text(environment, "SLURM_STEP_NODELIST"))
        port = port or _port_of_step(environment)
    elif launcher is not TORCH:
        address, port = address or ("localhost" if is_one_machine else ""), port or TORCH_PORT
    if not address:
        raise InputError(
            f"MASTER_ADDR is not set; set it to the host of the process whose {launcher.rank} is 0"
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"MASTER_PORT is {port!r}, expected the number of a free port on {address}")
    return {"MASTER_ADDR": address, "MASTER_PORT": port}


def _port_of_step(environment: Mapping[str, str]) -> str:
    """Return a port that other jobs and other steps of the job are unlikely to have."""
    job, step = (_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return str(SLURM_PORTS[(job + 997 * step) % len(SLURM_PORTS)])


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise InputError(f"{name} is not set, but other variables of its launcher are")
    return environment[name]


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name} is {text!r}, expected a number")
    return int(text)


def _check_below(name: str, number: int, limit_name: str, limit: int) -> None:
    if number >= limit:
        raise InputError(f"{name} is {number}, expected less than {limit_name}, which is {limit}")
