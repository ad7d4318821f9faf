"""tools/slurm.py: jobs that are stopped and go on, in the background of this machine and on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import slurm_cluster
import torch
from conftest import DEMO, ROOT, RunNet, load_script
from test_run_net import assert_same_weights

from video_iresnet.runtime import slurm as slurm_jobs

on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)
# Sixty short steps, so that a stop comes in the middle.
TEXT = """TRAIN.BATCH_SIZE 4 SOLVER.MAX_EPOCH 10 MODEL.DROPOUT_RATE 0.5 TRAIN.CHECKPOINT_PERIOD 100
TRAIN.EVAL_PERIOD 100 TEST.ENABLE False TEST.TEMPORAL_CHECKS False"""
STEPS = TEXT.split()


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Take back what submitting sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
        yield


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/slurm.py")


def words(overrides: list[str], folder: Path) -> list[str]:
    return ["run_net", "--cfg", DEMO, *overrides, *STEPS, "OUTPUT_DIR", str(folder)]


def steps(folder: Path) -> list[tuple[str, str, float]]:
    """The epoch, the iteration and the loss of each step."""
    path = folder / "json_stats.log"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line.removeprefix("json_stats: ")) for line in lines]
    return [(r["epoch"], r["iter"], r["loss"]) for r in records if r["_type"].startswith("train_iter_")]


def wait_until(is_so: Callable[[], object], what: Callable[[], str]) -> None:
    end = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < end, what()
        time.sleep(0.3)


def log_of(folder: Path) -> str:
    """What process 0 has said."""
    return "".join(path.read_text() for path in (folder / "slurm").glob("*_0_log.out"))


# A code with which a script ends in task RANK of a job of CLUSTER, whether SLURM still counts the job as
# running -> whether a restart is asked for, and the status of the task.
@pytest.mark.parametrize(
    ("code", "rank", "cluster", "running", "asks", "status"),
    [
        (0, 0, "slurm", True, False, None),
        (1, 0, "slurm", True, False, 1),
        (130, 0, "slurm", True, False, 130),
        (138, 0, "slurm", True, True, 138),
        (138, 0, "local", False, True, 138),
        (138, 1, "slurm", True, False, 0),
        (143, 0, "slurm", True, True, 143),
        (143, 0, "slurm", False, False, 143),
        (143, 0, "local", True, False, 143),
        (143, 1, "slurm", False, False, 0),
    ],
)
def test_when_a_task_asks_for_a_restart(
    code: int, rank: int, cluster: str, running: bool, asks: bool, status: int | None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        f"sys.exit({code} if sys.argv[1:] == ['a', 'b c'] and __name__ == '__main__' else 'wrong')\n"
    )
    asked: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("SUBMITIT_EXECUTOR", cluster)
    names = {"slurm": ("SLURM_PROCID", "SLURM_JOB_ID")}
    for name, value in zip(
        names.get(cluster, ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_JOB_ID")), (rank, 7), strict=True
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(slurm_jobs, "_is_running", lambda job: job == "7" and running)
    try:
        slurm_jobs.ScriptTask(str(script), ["a", "b c"])()
        ended = None
    except SystemExit as end:
        ended = end.code
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (bool(asked), ended) == (asks, status)


def test_restarts_after_time_limits_are_counted(tmp_path: Path) -> None:
    """With a limit of a minute, in which submitit takes every SIGUSR1 for its warning."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('it runs', sys.argv[1])\nsys.exit(138)\n")
    resources = slurm_jobs.Resources(hours=0.001, restarts=2)
    job = slurm_jobs.submit(slurm_jobs.ScriptTask(str(script), ["now"]), tmp_path, resources, local=True)
    job.wait()
    log = job.paths.stdout.read_text()
    assert log.count("it runs now") == 3
    assert "Job not requeued because: timed-out too many times." in log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run_nets"], "there is no script run_nets; expected one of "),
        (["run_net", "--cfg", DEMO, "TRAIN.BATCH", "4"], "TRAIN.BATCH"),
        (["run_net", "--cfg", DEMO], "there is no sbatch here; submit on a machine of a SLURM cluster, or "),
        (["--local", "--nodes", "2", "complexity"], "--nodes is 2, expected 1 with --local\n"),
    ],
)
def test_mistakes_show_before_anything_is_submitted(
    options: list[str], message: str, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert tool.main(options) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(rf"error: .*{re.escape(message)}.*", output.err.removesuffix("\n") + "\n", re.DOTALL)
    assert output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@on_the_cpu
def test_a_stopped_run_goes_on_by_itself(
    tool: ModuleType, small: list[str], run_net: RunNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By submitit's local executor, with the weights and predictions of a run that nothing disturbed."""
    jobs: list[slurm_jobs.Job[None]] = []
    monkeypatch.setattr(
        tool, "submit", lambda *a, **more: jobs.append(slurm_jobs.submit(*a, **more)) or jobs[-1]
    )
    run = ["--cfg", DEMO, *small, *STEPS, "TEST.ENABLE", "True", "OUTPUT_DIR"]
    assert tool.main(["--local", "run_net", *run, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    (job,) = jobs
    assert said.startswith(f"job {job.job_id}: run_net.py in 1 task(s)\n")
    assert said.endswith(f"kill {job.job_id}\n")
    assert run_net(*run[2:], str(tmp_path / "b")) == 0
    wait_until(lambda: len(steps(tmp_path / "a")) > 2, lambda: log_of(tmp_path / "a"))
    task = subprocess.run(["pgrep", "-P", job.job_id], check=True, capture_output=True, text=True).stdout
    os.kill(int(task), signal.SIGUSR1)
    job.wait()
    log = log_of(tmp_path / "a")
    assert "resuming from" in log.partition("stopped in epoch")[2]
    assert steps(tmp_path / "a") == steps(tmp_path / "b")
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    predictions = [(tmp_path / name / "predictions.csv").read_bytes() for name in "ab"]
    assert predictions[0] == predictions[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A SLURM cluster of two nodes on this machine, for this process."""
    if slurm_cluster.unavailable():
        pytest.skip(slurm_cluster.unavailable())
    with slurm_cluster.cluster() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def state(job: str) -> dict[str, str]:
    """What SLURM says of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", call("scontrol", "show", "job", job)))


def submitted(tool: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The number of a job that the tool has submitted to both nodes."""
    assert tool.main(["--nodes", "2", "--set", "job-name=small", *arguments]) == 0
    said = capsys.readouterr().out
    job = re.findall(r"^job (\d+): run_net.py in 2 task\(s\)\n", said)
    assert said.endswith(f"; squeue --job {job[0]}\nend it:    scancel {job[0]}\n")
    return str(job[0])


def wait_for_end(job: str, log: Callable[[], str]) -> dict[str, str]:
    wait_until(lambda: state(job)["JobState"] not in {"PENDING", "RUNNING", "COMPLETING"}, log)
    return state(job)


def preempt(job: str, log: Callable[[], str]) -> None:
    """Let a job that precedes it take both nodes; return when it runs again."""
    restarts = int(state(job)["Restarts"])
    call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_until(lambda: int(state(job)["Restarts"]) > restarts and state(job)["JobState"] == "RUNNING", log)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: None, tool: ModuleType, small: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two processes on two nodes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert tool.main(["--nodes", "2", *words(small, folder)]) == 0
    (script,) = (folder / "slurm").glob("*_submission.sh")
    job = script.name.partition("_")[0]
    end = wait_for_end(job, lambda: log_of(folder))
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "0"), log_of(folder)
    assert log_of(folder).count("2 process(es)") == 1
    return folder


@pytest.mark.slow
@on_the_cpu
def test_a_preempted_job_goes_on(
    undisturbed: Path, tool: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First after it has asked for its restart within the GraceTime, then after a requeue that SLURM does."""

    def log() -> str:
        return log_of(tmp_path)

    job = submitted(tool, words(small, tmp_path), capsys)
    wait_until(lambda: len(steps(tmp_path)) > 2, log)
    preempt(job, log)
    wait_until(lambda: log().count("resuming from") == 1, log)
    assert state(job)["JobName"] == "small"
    call("scontrol", "requeue", job)
    end = wait_for_end(job, log)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "2"), log()
    assert log().count("Calling checkpoint method") == 1
    assert steps(tmp_path) == steps(undisturbed)
    assert_same_weights(tmp_path, undisturbed)


@pytest.mark.slow
@on_the_cpu
def test_a_cancelled_job_has_saved_and_does_not_come_back(
    cluster: None, tool: ModuleType, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def log() -> str:
        return log_of(tmp_path)

    job = submitted(tool, words(small, tmp_path), capsys)
    wait_until(lambda: len(steps(tmp_path)) > 2, log)
    call("scancel", job)
    end = wait_for_end(job, log)
    assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0")
    (saved,) = re.findall(r"^stopped in epoch .*; saved (.*)$", log(), re.MULTILINE)
    assert Path(saved).exists()
    assert "Traceback" not in log()
    assert "preempted" not in log()


@pytest.mark.slow
@on_the_cpu
def test_the_script_of_the_documents(undisturbed: Path, small: list[str], tmp_path: Path) -> None:
    """A script without submitit, which asks for its restart by itself."""
    page = (ROOT / "docs/training.md").read_text()
    command = shlex.join([sys.executable, str(ROOT / "tools/run_net.py"), *words(small, tmp_path)[1:]])
    script = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0]
    script = re.sub(r"srun .*", lambda _: f"srun {command}", script)
    options, log = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0"], tmp_path / "log"
    (tmp_path / "job.sh").write_text(script)
    job = call("sbatch", "--parsable", *options, f"--output={log}", str(tmp_path / "job.sh"))

    def said() -> str:
        return log.read_text() if log.exists() else ""

    wait_until(lambda: len(steps(tmp_path)) > 2, said)
    preempt(job, said)
    end = wait_for_end(job, said)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), said()
    assert steps(tmp_path) == steps(undisturbed)
    assert_same_weights(tmp_path, undisturbed)
