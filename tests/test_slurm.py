"""tools/slurm.py: jobs that are stopped and go on, in the background of this machine and on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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
from conftest import DEMO, ROOT, RunNet, load_script, run_together
from test_run_net import assert_same_weights

from video_iresnet.runtime import slurm as slurm_jobs

on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)
# A hundred short steps, so that a stop comes in the middle.
TEXT = """TRAIN.BATCH_SIZE 4 SOLVER.MAX_EPOCH 16 MODEL.DROPOUT_RATE 0.5 TRAIN.CHECKPOINT_PERIOD 100
TRAIN.EVAL_PERIOD 100 TEST.ENABLE False"""
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
    """What process 0 of the jobs for an OUTPUT_DIR has said."""
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
    for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"):
        monkeypatch.setenv(name, str(rank))
    for name in ("SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(slurm_jobs, "_is_running", lambda job: job == "7" and running)
    try:
        slurm_jobs.ScriptTask(str(script), ["a", "b c"])()
        ended = None
    except SystemExit as end:
        ended = end.code
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (bool(asked), ended) == (asks, status)


@pytest.mark.parametrize("running", [True, False])
def test_a_request_for_a_restart_that_ends_with_the_job_is_no_error(
    running: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SLURM ends all processes of the job once it grants the restart. While the job runs, it is an error."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(138)\n")
    before = signal.signal(signal.SIGUSR1, lambda *_: subprocess.run(["sh", "-c", "kill $$"], check=True))
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(slurm_jobs, "_is_running", lambda _: running)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    try:
        with pytest.raises(subprocess.CalledProcessError if running else SystemExit, match=r"SIGTERM|^138$"):
            slurm_jobs.ScriptTask(str(script), [])()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("code", "runs"), [(138, 3), (1, 1)])
def test_restarts_after_time_limits_are_counted(code: int, runs: int, tmp_path: Path) -> None:
    """With a limit of a minute, in which submitit takes every SIGUSR1 for its warning. Errors cause none."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint('it runs', sys.argv[1])\nsys.exit({code})\n")
    resources = slurm_jobs.Resources(hours=0.001, restarts=2)
    job = slurm_jobs.submit(slurm_jobs.ScriptTask(str(script), ["now"]), tmp_path, resources, local=True)
    job.wait()
    log = job.paths.stdout.read_text()
    assert log.count("it runs now") == runs
    assert ("Job not requeued because: timed-out too many times." in log) == (code == 138)


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


def number_of(folder: Path) -> str:
    """The number of the job that was submitted for an OUTPUT_DIR."""
    (script,) = (folder / "slurm").glob("*_submission.sh")
    return script.name.partition("_")[0]


def wait_for_end(job: str, folder: Path) -> dict[str, str]:
    unfinished = {"PENDING", "RUNNING", "COMPLETING"}
    wait_until(lambda: state(job)["JobState"] not in unfinished, lambda: log_of(folder))
    return state(job)


@pytest.fixture(scope="module")
def undisturbed(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed, each with the threads of a whole node."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_together(2, f"{ROOT}/tools/run_net.py", *words(small, folder)[1:], local_size=1)
    return folder


@pytest.mark.slow
@on_the_cpu
def test_a_preempted_job_goes_on_and_a_cancelled_one_has_saved(
    undisturbed: Path, cluster: None, tool: ModuleType, small: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The script of docs/training.md, without submitit, then ends what was cancelled; it is preempted too."""

    def told() -> str:
        return log_of(tmp_path) + call("scontrol", "show", "job") + call("scontrol", "show", "node")

    def wait_for_step(number: int) -> None:
        wait_until(lambda: len(steps(tmp_path)) >= number, told)

    def preempt(job: str) -> None:
        """Let a job that precedes it take both nodes, and wait for its restart."""
        call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
        wait_until(lambda: state(job)["Restarts"] == "1", told)
        wait_for_step(len(steps(tmp_path)) + 1)

    slow = tmp_path / "bin/scontrol"  # it ends with the job before it has heard of the restart
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n{shutil.which("scontrol")} "$@" && [ "$1" != requeue ] || sleep 20\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    assert tool.main(["--nodes", "2", "--set", "job-name=small", *words(small, tmp_path)]) == 0
    job = number_of(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"job {job}: run_net.py in 2 task(s)\n")
    assert said.endswith(f"; squeue --job {job}\nend it:    scancel {job}\n")
    wait_for_step(3)
    preempt(job)
    call("scancel", job)
    end = wait_for_end(job, tmp_path)
    assert (end["JobName"], end["JobState"], end["Restarts"]) == ("small", "CANCELLED", "1")
    log = log_of(tmp_path)
    assert log.count("2 process(es)") == 2
    assert [log.count(words) for words in ("stopped in epoch", "Calling checkpoint", "Traceback")] == [
        2,
        1,
        0,
    ], log
    done = steps(tmp_path)
    assert done == steps(undisturbed)[: len(done)]

    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    command = shlex.join([sys.executable, str(ROOT / "tools/run_net.py"), *words(small, tmp_path)[1:]])
    (tmp_path / "job.sh").write_text(re.sub(r"srun .*", lambda _: f"srun {command}", script))
    options = [
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=0",
        f"--output={tmp_path}/slurm/%j_0_log.out",
    ]
    job = call("sbatch", "--parsable", *options, str(tmp_path / "job.sh"))
    wait_for_step(len(done) + 1)
    preempt(job)
    end = wait_for_end(job, tmp_path)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log_of(tmp_path)
    assert steps(tmp_path) == steps(undisturbed)
    assert_same_weights(tmp_path, undisturbed)
