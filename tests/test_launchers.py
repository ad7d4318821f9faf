"""Processes that SLURM, MPI or Kubernetes started, from their variables and on a real SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import torch
from conftest import DEMO, ROOT, load_script, start

from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.launchers import first_host, launcher_words, tasks_of_nodes, torch_variables

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# As a task of `srun -N 3 -n 11` in an allocation of 16 tasks has them.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "1",
    "SLURM_NTASKS": "11",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[03-04,17]",
    "SLURM_JOB_NODELIST": "gpu[01-04,17]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "first",
}
HYDRA = {
    "PMI_RANK": "2",
    "PMI_SIZE": "3",
    "MPI_LOCALRANKID": "2",
    "MPI_LOCALNRANKS": "3",
}
SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
}
KUBERNETES = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
TORCHRUN = dict(zip(NAMES, ("1", "8", "1", "4", "torch", "1234"), strict=True))
# What is left of them in the shells of sbatch and salloc.
SBATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SALLOC = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "a"}
ONE_TASK = {
    **SLURM,
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}


@pytest.mark.parametrize(
    ("environment", "values", "words"),
    [
        ({}, "", "python"),
        ({"PATH": "/bin", "LOCAL_RANK": "1"}, "", "python"),
        (SLURM, "9 11 1 3 gpu03 15239", "srun --ntasks 11 python"),
        (SLURM | {"SLURM_NODEID": "1", "SLURM_PROCID": "4"}, "4 11 1 4 gpu03 15239", None),
        (SLURM | {"SLURM_JOB_ID": "20004242"}, "9 11 1 3 gpu03 15239", None),
        (SLURM | {"SLURM_STEP_ID": "0"}, "9 11 1 3 gpu03 14242", None),
        (SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}, "9 11 1 3 10.0.0.1 7", None),
        (SLURM | {"WORLD_SIZE": "11", "PMI_RANK": "9", "PMI_SIZE": "11"}, "9 11 1 3 gpu03 15239", None),
        (ONE_TASK, "", "python"),
        (SBATCH, "", "python"),
        (SALLOC, "", "python"),
        (SLURM | TORCHRUN, "1 8 1 4 torch 1234", "torchrun --nproc-per-node 4"),
        (TORCHRUN, "1 8 1 4 torch 1234", "torchrun --nproc-per-node 4"),
        (OPEN_MPI, "3 4 1 2 first 29500", "mpirun -n 4 python"),
        (ONE_TASK | OPEN_MPI, "3 4 1 2 first 29500", None),
        (HYDRA, "2 3 2 3 localhost 29500", "mpirun -n 3 python"),
        (ONE_TASK | HYDRA | {"MASTER_PORT": "30000"}, "2 3 2 3 localhost 30000", None),
        (SUBMITIT, "1 2 1 2 localhost 29500", "torchrun --nproc-per-node 2"),
        (SALLOC | SUBMITIT, "1 2 1 2 localhost 29500", None),
        (KUBERNETES, "1 2 0 1 job-master-0 23456", "python"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "0 1 0 1", "python"),
    ],
)
def test_variables_of_each_launcher(environment: dict[str, str], values: str, words: str | None) -> None:
    assert torch_variables(environment) == dict(zip(NAMES, values.split(), strict=False))
    if words:
        assert launcher_words(environment) == words.split()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            SLURM | {"SLURM_PROCID": "11"},
            "SLURM_PROCID is 11, expected less than SLURM_STEP_NUM_TASKS, which is 11",
        ),
        (
            SLURM | {"SLURM_LOCALID": "3"},
            "SLURM_LOCALID is 3, expected less than SLURM_STEP_TASKS_PER_NODE, which is 3",
        ),
        (
            SLURM | {"SLURM_NODEID": "3"},
            "SLURM_NODEID is 3, expected less than the number of nodes in SLURM_STEP_TASKS_PER_NODE, "
            "which is 3",
        ),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            "SLURM_STEP_TASKS_PER_NODE is '4(x2)', 8 tasks, but SLURM_STEP_NUM_TASKS is 11",
        ),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(2)"},
            "SLURM_STEP_TASKS_PER_NODE is '4(2)', expected numbers such as '4(x2),3'",
        ),
        (SLURM | {"SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1', expected a number"),
        (
            SLURM | {"WORLD_SIZE": "3"},
            "WORLD_SIZE is '3', but 11 by SLURM_STEP_NUM_TASKS; unset it, or set all of RANK, WORLD_SIZE, "
            "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
        (
            {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},
            "SLURM_STEP_NODELIST is not set, but other variables of its launcher are",
        ),
        (
            {name: value for name, value in OPEN_MPI.items() if name != "MASTER_ADDR"},
            "MASTER_ADDR is not set; set it to the host of the process whose OMPI_COMM_WORLD_RANK is 0",
        ),
        (
            OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "5"},
            "OMPI_COMM_WORLD_LOCAL_SIZE is 5 for this machine, more than OMPI_COMM_WORLD_SIZE, 4",
        ),
        (
            {"PMI_RANK": "0", "PMI_SIZE": "2"},
            "MPI_LOCALRANKID is not set, but other variables of its launcher are",
        ),
        (
            KUBERNETES | {"MASTER_ADDR": ""},
            "MASTER_ADDR is not set; set it to the host of the process whose RANK is 0",
        ),
        (
            KUBERNETES | {"MASTER_PORT": "http"},
            "MASTER_PORT is 'http', expected the number of a free port on job-master-0",
        ),
        (KUBERNETES | {"RANK": "2"}, "RANK is 2, expected less than WORLD_SIZE, which is 2"),
        ({"RANK": "0"}, "WORLD_SIZE is not set, but other variables of its launcher are"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, but other variables of its launcher are"),
    ],
)
def test_variables_that_do_not_fit(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        torch_variables(environment)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node03", "node03"),
        ("node[03-05,7],login", "node03"),
        ("node[7,09-10]", "node7"),
        ("a,b[1-2]", "a"),
        ("rack[2-3]n[00-15]-ib", "rack2n00-ib"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_nodes() -> None:
    assert tasks_of_nodes("4(x2),3") == [4, 4, 3]
    assert tasks_of_nodes("1") == [1]


@pytest.mark.parametrize("script", ["tools/run_net.py", "tools/extract.py"])
def test_wrong_variables_are_one_line(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in (SLURM | {"SLURM_PROCID": "11"}).items():
        monkeypatch.setenv(name, value)
    arguments = ["--cfg", DEMO] if "run_net" in script else ["--checkpoint", "a", "--out", "b", "c.mp4"]
    monkeypatch.chdir(tmp_path)
    assert load_script(script).main(arguments) == 1
    message = "error: SLURM_PROCID is 11, expected less than SLURM_STEP_NUM_TASKS, which is 11\n"
    assert capsys.readouterr() == ("", message)
    assert not list(tmp_path.iterdir())


on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)
SHORT = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False"]


def run_net(overrides: list[str], folder: Path) -> list[str]:
    words = [str(ROOT / "tools/run_net.py"), "--cfg", DEMO]
    return [*words, *overrides, *SHORT, "OUTPUT_DIR", str(folder)]


def losses(folder: Path) -> list[float]:
    lines = (folder / "json_stats.log").read_text().splitlines()
    return [json.loads(line.removeprefix("json_stats: ")).get("loss", 0) for line in lines]


@pytest.fixture(scope="module")
def by_torchrun(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run of two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("torchrun")
    process = start(*run_net(small, folder), "NUM_GPUS", "2")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return losses(folder)


@pytest.mark.slow
@on_the_cpu
def test_slurms_variables_start_a_run(small: list[str], by_torchrun: list[float], tmp_path: Path) -> None:
    """Without SLURM, and with the losses of torchrun."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    node = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    processes = [
        start(
            *run_net(small, tmp_path),
            environment=job | node | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert "2 process(es)" in output[0]
    assert losses(tmp_path) == by_torchrun


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of a SLURM cluster of two nodes on this machine."""
    if slurm_cluster.unavailable():
        pytest.skip(slurm_cluster.unavailable())
    with slurm_cluster.cluster() as variables:
        yield os.environ | variables


@pytest.mark.slow
@on_the_cpu
def test_srun_starts_a_run(
    slurm: dict[str, str], small: list[str], by_torchrun: list[float], tmp_path: Path
) -> None:
    """On two nodes, which meet at the name of the first one."""
    command = ["srun", "--nodes", "2", "--ntasks", "2", sys.executable, *run_net(small, tmp_path)]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 process(es)") == 1
    # Each process computes with the threads of a whole node, so sums are added in another order.
    assert losses(tmp_path) == pytest.approx(by_torchrun, rel=1e-3)
    assert len(by_torchrun) > 3
