"""Runs that are told to stop, or lose their launcher, a process or the disk: what is complete is saved, and
the same command goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DEMO, ROOT, TORCHRUN, RunNet, run_together, start, start_together
from starts import Forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_run_net import assert_same_weights, wait_for_step

from video_iresnet import folder
from video_iresnet import run as story
from video_iresnet.runtime.logging import Stats
from video_iresnet.runtime.signals import StopRequest

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")

# Short steps, many of them, whose data come from workers.
STEPS = ["TRAIN.BATCH_SIZE", "2", "MODEL.DROPOUT_RATE", "0.5", "TEST.ENABLE", "False"]
WORKERS = ["DATA_LOADER.NUM_WORKERS", "2"]
TWO = [
    *STEPS,
    "TRAIN.BATCH_SIZE",
    "4",
    "SOLVER.MAX_EPOCH",
    "4",
    "NUM_GPUS",
    "2",
    "DATA_LOADER.NUM_WORKERS",
    "1",
]
on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)


def command(small: list[str], folder: Path, *more: str) -> list[str]:
    return ["tools/run_net.py", "--cfg", DEMO, *small, *more, "OUTPUT_DIR", str(folder)]


def descendants(process: int) -> list[int]:
    """All processes that a process has started, directly or not."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found = [process]
    for one in found:
        found += [pid for pid, parent in pairs if parent == one]
    return found[1:]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_net(*small, *STEPS, *WORKERS, "OUTPUT_DIR", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed_pair(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    run_together(2, *command(small, folder, *TWO))
    return folder


STOPPED = (
    r"\nstopped in epoch \d after step \d+ of \d+; saved .*epoch_0000\d_step_0000\d+.pyth\n"
    r"go on with: python "
)


def stopped_by(number: signal.Signals, process: Forked) -> str:
    """The output of a run all of whose processes get a signal."""
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert len(re.findall(STOPPED, output)) == 1, output
    assert "Traceback" not in output
    return output


def test_a_signal_to_all_processes_of_a_run_stops_it_in_order(
    undisturbed: Path, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    """As `kill -TERM -- -GROUP` and SLURM send it: the decoding workers get it first."""
    overrides = [*small, *STEPS, *WORKERS, "OUTPUT_DIR", str(tmp_path)]
    for epoch, number in enumerate((signal.SIGTERM, signal.SIGUSR1), 1):
        process = start("tools/run_net.py", "--cfg", DEMO, *overrides)
        wait_for_step(process, tmp_path, epoch, 3)
        assert ("resuming from" in stopped_by(number, process)) == (epoch > 1)
    assert run_net(*overrides) == 0
    assert_same_weights(undisturbed, tmp_path)


@pytest.mark.slow
@on_the_cpu
def test_a_signal_to_all_processes_under_torchrun_stops_them_in_order(
    undisturbed_pair: Path, small: list[str], tmp_path: Path
) -> None:
    """The processes get it twice: from outside, and from torchrun's agent."""
    arguments = command(small, tmp_path, *TWO)
    for epoch, number in enumerate((signal.SIGTERM, signal.SIGUSR1), 1):
        process = start(*arguments)
        wait_for_step(process, tmp_path, epoch, 3)
        stopped_by(number, process)
    run_together(2, *arguments)
    assert_same_weights(undisturbed_pair, tmp_path)


@pytest.mark.slow
@on_the_cpu
def test_processes_end_when_their_launcher_is_killed(small: list[str], tmp_path: Path) -> None:
    """Long before the run would; the drill compares what comes of a run that goes on after this."""
    process = start(*command(small, tmp_path, *TWO, "SOLVER.MAX_EPOCH", "1000"))
    wait_for_step(process, tmp_path, 1, 3)
    others = descendants(process.pid)
    assert len(others) >= 4
    process.kill()
    output, _ = process.communicate(timeout=30)
    wait_until(lambda: not any(map(is_running, others)), 10)
    assert output.count("torchrun's agent") == 1, output
    assert "Traceback" not in output
    assert "error: " not in output


def test_decoding_workers_end_when_the_run_is_killed(small: list[str], tmp_path: Path) -> None:
    process = start(*command(small, tmp_path, *STEPS, *WORKERS))
    wait_for_step(process, tmp_path, 1, 2)
    workers = descendants(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_running, workers)), 20)


@pytest.mark.parametrize("moment", ["save", "test"])
def test_a_signal_after_the_last_step_is_not_lost(
    moment: str, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While the last checkpoint is written, or after the testing."""

    def signalled(work: Callable[..., object]) -> Callable[..., object]:
        def both(*arguments: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return work(*arguments)

        return both

    module, name = {"save": (folder, "save_checkpoint"), "test": (story, "_write_test")}[moment]
    more = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "OUTPUT_DIR", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, signalled(getattr(module, name)))
        assert run_net(*small, *more) == 143
    error = capsys.readouterr().err
    assert re.match(r"stopped .*\ngo on with: ", error), error
    assert (tmp_path / "results.json").exists() == (moment == "test")
    assert run_net(*small, *more) == 0
    assert (tmp_path / "results.json").exists()


def test_only_a_second_ctrl_c_ends_at_once() -> None:
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert stop.signal == signal.SIGTERM
    stop._since -= 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_disk_that_is_full_ends_the_run_at_a_checkpoint_alone(
    small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """The logs, which an earlier run has left long, do not fit any more, nor does a checkpoint."""
    for name in ("json_stats.log", "stdout.log"):
        (tmp_path / name).write_text("x" * 19_990 + "\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert run_net(*small, "OUTPUT_DIR", str(tmp_path)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output, error = capsys.readouterr()
    for name in ("json_stats.log", "stdout.log"):
        assert output.count(f"cannot write {tmp_path / name}: File too large; the run goes on") == 1
        assert (tmp_path / name).read_text() == "x" * 19_990 + "\n"
    assert "epoch 1/2: loss" in output
    assert re.fullmatch(r"error: cannot write \S*/checkpoint_epoch_00001.pyth: File too large; .*\n", error)


def test_curves_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    stats = Stats(tmp_path, 7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    stats.write({"_type": "train_iter_", "loss": 0.5, "lr": 2.0}, 8)
    (file,) = (tmp_path / "tensorboard").iterdir()
    before = file.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        stats.write({"_type": "train_iter_", "loss": 0.25, "lr": 2.0}, 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    stats.write({"_type": "train_iter_", "loss": 0.125, "lr": 2.0}, 10)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in events.Scalars("train_iter/loss")]
    assert curve == [(8, 0.5), (10, 0.125)]
    lines = (tmp_path / "json_stats.log").read_text().splitlines()
    assert [json.loads(line.removeprefix("json_stats: "))["loss"] for line in lines] == [0.5, 0.25, 0.125]


# What goes wrong in one process of two: (its rank, the code that breaks it, what the main process says).
FAULTS = {
    "nan": (1, "cross_entropy = tasks.F.cross_entropy\n"
        "patch.setattr(tasks.F, 'cross_entropy', lambda *a: cross_entropy(*a) * float('nan'))",
        "the loss or the gradient was not finite in 1 step\\(s\\), the last in epoch 1, step 1"),
    "batch": (1, "none = train.ClipBatch(*2 * [train.torch.empty(0)], [])\n"
        "patch.setattr(train, '_next_batch', lambda *_: (none, InputError('no clip here')))", "no clip here"),
    "save": (0, "patch.setattr(folder, 'save_checkpoint', refuse('disk is full'))", "disk is full"),
    "list": (0, "patch.setattr(build, 'build_records', refuse('no list here'))", "no list here"),
    "network": (1, "patch.setattr(build, 'build_network', refuse('no network here'))", "no network here"),
    "test": (1, "views = lambda *_, **__: (map(refuse('worker killed'), 'x') for _ in 'x')\n"
        "patch.setattr(run, 'view_loader', contextlib.contextmanager(views))", "worker killed"),
    "store": (1, "patch.setattr(folder.ViewStore, 'append', refuse('views do not fit'))", "views do not fit"),
}  # fmt: skip
FAULTY = f"""
import contextlib, os, sys, warnings
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
sys.stderr = open(f"{{sys.argv[1]}}/errors_{{os.environ['RANK']}}.txt", "w")
warnings.simplefilter("ignore")
import pytest
from conftest import load_script
from video_iresnet import build, folder, run
from video_iresnet.engine import tasks, train
from video_iresnet.runtime.errors import InputError

def refuse(message):
    def refusal(*_):
        raise InputError(message)
    return refusal

main = load_script("tools/run_net.py").main
for fault, (rank, code, _) in {FAULTS!r}.items():
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == str(rank):
            exec(code)
        status = main([*sys.argv[2:], "OUTPUT_DIR", f"{{sys.argv[1]}}/{{fault}}"])
    print(f"{{fault}} ends with {{status}}", file=sys.stderr)
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_one_line(small: list[str], tmp_path: Path) -> None:
    """Runs that fail, one after another, in the same two processes."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    words = [str(tmp_path), "--cfg", DEMO, *small, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0"]
    processes = start_together(2, str(tmp_path / "faulty.py"), *words)
    _, out = [process.communicate(timeout=240)[0] for process in processes]
    error, other = [(tmp_path / f"errors_{rank}.txt").read_text() for rank in range(2)]
    lines = [f"error: {message}.*\n{fault} ends with 1\n" for fault, (_, _, message) in FAULTS.items()]
    assert re.fullmatch("".join(lines), error), error + other
    assert (out, other) == ("", "".join(f"{fault} ends with 1\n" for fault in FAULTS))


@pytest.mark.slow
@on_the_cpu
@pytest.mark.parametrize("launcher", [(), (*TORCHRUN, "--nproc-per-node=2")])
def test_each_of_several_configs_has_its_own_processes(
    launcher: tuple[str, ...], small: list[str], tmp_path: Path
) -> None:
    """The one that NUM_GPUS asks for or, under torchrun, a new group of the same."""
    for name, count in {"a": 0, "b": 2, "c": 0}.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"_BASE_: {DEMO}\nOUTPUT_DIR: {tmp_path}/{name}\nNUM_GPUS: {count}\n"
        )
    configs = [str(tmp_path / f"{name}.yaml") for name in "abc"]
    more = [*small[2:], "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0"]
    process = start("tools/run_net.py", "--cfg", *configs, *more, launcher=launcher)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    counts = re.findall(r"(\d) process\(es\)", output)
    assert counts == (["2", "2", "2"] if launcher else ["1", "2", "1"])
    assert all((tmp_path / name / "results.json").exists() for name in "abc")
