"""A run of two torchrun agents, each on a machine of its own where the kernel allows it: one is lost, and
another one comes later.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from conftest import DEMO, ROOT, RunNet
from test_run_net import last_weights, stats_of, wait_for_step
from test_signals import descendants

from video_iresnet.data.loader import ClipBatch
from video_iresnet.engine.step import Outcome, Step

# 3 epochs of 6 steps. Without statistics of batches, the number of processes is a matter of rounding.
RUN = [
    "TRAIN.BATCH_SIZE", "4", "SOLVER.MAX_EPOCH", "3", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BASE_LR", "0.001",
    "MODEL.FROZEN_BN", "True", "TEST.ENABLE", "False", "TRAIN.CHECKPOINT_MINUTES", "1e-6",
]  # fmt: skip
# A process that is alone waits for another one, whose coming ends it by a signal.
PACED = f"""
import os, select, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from conftest import load_script
from test_elastic import recorded
from video_iresnet.engine.step import Step

is_alone = os.environ["WORLD_SIZE"] == "1"
signalled, end = os.pipe()
os.set_blocking(end, False)
signal.set_wakeup_fd(end)
Step.__call__ = recorded(
    Path(sys.argv[1]), lambda done: select.select([signalled], [], [], 200 if is_alone and done > 8 else 0.2)
)
sys.exit(load_script("tools/run_net.py").main(sys.argv[2:]))
"""


def recorded(file: Path, pause: Callable[[int], object] = lambda done: None) -> Callable[..., Outcome]:
    """A training step that first writes which clips it has: [step, number of processes, rank, hashes]."""
    call = Step.__call__

    def step(self: Step, batch: ClipBatch, done: int, progress: float) -> Outcome:
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        hashes = [zlib.crc32(clip.numpy().tobytes()) for clip in batch.clips]
        with file.open("a") as lines:
            lines.write(json.dumps([done, size, rank, hashes]) + "\n")
        pause(done)
        return call(self, batch, done, progress)

    return step


def read_steps(file: Path) -> list[tuple[int, int, int, list[int]]]:
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()]


def run_command(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[list[list[str]], str]]:
    """What stands before a command to run it on one of two machines, namespaces of the kernel that a cable
    joins, and the name of the first one. Where that is not allowed, both are this machine.
    """
    names = [f"iresnet{os.getpid()}-{i}" for i in (1, 2)]
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n")
    prefixes = []
    with ExitStack() as at_end:
        try:
            for name in names:
                run_command("ip", "netns", "add", name)
                at_end.callback(run_command, "ip", "netns", "delete", name)
            cable = ["type", "veth", "peer", "name", "eth0", "netns", names[1]]
            run_command("ip", "link", "add", "eth0", "netns", names[0], *cable)
            for i, name in enumerate(names, 1):
                run_command("ip", "-n", name, "address", "add", f"10.77.0.{i}/24", "dev", "eth0")
                run_command("ip", "-n", name, "link", "set", "eth0", "up")
                run_command("ip", "-n", name, "link", "set", "lo", "up")
                own = f'hostname node{i} && mount --bind {hosts} /etc/hosts && exec "$@"'
                inside = ["unshare", "--uts", "--mount", "sh", "-c", own, "sh"]
                prefixes.append(["ip", "netns", "exec", name, *inside])
                run_command(*prefixes[-1], "true")
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no namespaces here, so both agents are on one: {getattr(error, 'stderr', '') or error}")
            yield [[], []], "localhost"
        else:
            yield prefixes, "node1"


def kill(agent: subprocess.Popen[str]) -> None:
    """End an agent and its processes as a power cut does."""
    if agent.poll() is None:
        for pid in [*descendants(agent.pid), agent.pid]:
            os.kill(pid, signal.SIGKILL)
        agent.communicate()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_a_run_goes_on_with_fewer_machines_and_with_more(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the clips of each step of a run that one process made undisturbed, and its losses."""
    whole, elastic = tmp_path / "whole", tmp_path / "elastic"
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", recorded(tmp_path / "expected"))
        assert run_net(*small, *RUN, "OUTPUT_DIR", str(whole)) == 0
    expected = [clips for *_, clips in read_steps(tmp_path / "expected")]
    assert len(expected) == 18
    (tmp_path / "paced.py").write_text(PACED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with two_machines(tmp_path) as (machines, first), ExitStack() as at_end:

        def agent(machine: list[str]) -> subprocess.Popen[str]:
            torchrun = f"""{sys.executable} -m torch.distributed.run --nnodes 1:2 --nproc-per-node 1
            --rdzv-backend c10d --rdzv-endpoint {first}:{port} --rdzv-id run --max-restarts 3
            --rdzv-conf last_call_timeout=5,keep_alive_interval=1 --monitor-interval 0.2"""
            script = [str(tmp_path / "paced.py"), str(tmp_path / "steps"), "--cfg", DEMO]
            started = subprocess.Popen(
                [*machine, *torchrun.split(), *script, *small, *RUN, "OUTPUT_DIR", str(elastic)],
                # torchrun's shared store, as of PyTorch 2.14, is not told to agents that come later.
                env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            at_end.callback(kill, started)
            return started

        staying, lost = map(agent, machines)
        wait_for_step(staying, elastic, 1, 3)
        kill(lost)
        lost_at = time.monotonic()
        wait_for_step(staying, elastic, 2, 2)
        print(f"went on alone {time.monotonic() - lost_at:.1f} s after the loss")
        late = agent(machines[1])
        outputs = [process.communicate(timeout=240)[0] for process in (staying, late)]
    assert [staying.returncode, late.returncode] == [0, 0], outputs
    steps = read_steps(tmp_path / "steps")
    sizes = [size for size, _ in itertools.groupby(size for _, size, _, _ in steps)]
    assert sizes == [2, 1, 2], outputs
    for done, size, rank, clips in steps:
        assert clips == expected[done][rank * 4 // size : (rank + 1) * 4 // size]
    assert {done for done, *_ in steps} == set(range(18))
    ours, theirs = (stats_of(run, "train_epoch") for run in (elastic, whole))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)
    torch.testing.assert_close(last_weights(elastic), last_weights(whole), rtol=1e-3, atol=1e-4)
