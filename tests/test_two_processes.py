"""Training on two processes, against the average of gradients computed by hand."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import DEMO, ROOT, run_together, start_together
from torch.nn import functional as F

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.loader import collate_clips
from video_iresnet.engine import optim
from video_iresnet.engine.checkpoint import load_checkpoint
from video_iresnet.models import ResNet
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.seeding import Stream, integer_seed

SLOW = ["SOLVER.BASE_LR", "0.001"]


def trained_by_hand(cfg: Config, parts: int) -> tuple[ResNet, list[float]]:
    """The network after one epoch of SGD on the mean gradient of two halves of each batch, and the losses of
    the first half. Batch normalization sees one of the `parts` of a half at a time and keeps the first half's
    statistics.
    """
    torch.manual_seed(integer_seed(cfg.RNG_SEED, Stream.WEIGHTS))
    model = build.build_model(cfg)
    model.train(not cfg.MODEL.FROZEN_BN)
    optim.freeze(model, 0, cfg.MODEL.FROZEN_BN)
    optimizer, schedule = build.build_optimizer(cfg, model), build.build_schedule(cfg)
    data = build.build_training_data(cfg, build.build_records(cfg, "DATA.TRAIN_LIST"))
    normalize = build.build_normalize(cfg, torch.device("cpu"))
    batches = build.build_batches(cfg, len(data))
    losses = []
    for step, keys in zip(range(batches.steps(0)), batches, strict=False):
        halves = [collate_clips([data[key] for key in half]) for half in (keys[:4], keys[4:])]
        networks = [model, copy.deepcopy(model)]
        for network, half in zip(networks, halves, strict=True):
            network.zero_grad()
            some = []
            for clips, labels in zip(half.clips.chunk(parts), half.labels.chunk(parts), strict=True):
                some.append(F.cross_entropy(network(normalize(clips)), labels) / parts)
                some[-1].backward()  # type: ignore[no-untyped-call]
            losses += [sum(loss.item() for loss in some)] if network is model else []
        for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
            if ours.requires_grad:
                assert ours.grad is not None
                assert theirs.grad is not None
                ours.grad = (ours.grad + theirs.grad) / 2
        for group in optimizer.param_groups:
            group["lr"] = schedule(step / batches.steps(0))
        optimizer.step()
    return model, losses


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
@pytest.mark.parametrize(
    ("parts", "overrides", "tolerance"),
    [
        (1, [], 1e-4),
        # Where normalization is frozen, parts and rounding (8 bits of mantissa) matter little.
        (
            2,
            ["TRAIN.ACCUMULATION", "2", "TRAIN.BF16_ALLREDUCE", "True", "MODEL.FROZEN_BN", "True", *SLOW],
            5e-3,
        ),
    ],
)
def test_two_processes_average_their_gradients(
    parts: int, overrides: list[str], tolerance: float, small: list[str], tmp_path: Path
) -> None:
    one_epoch = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False"]
    run = [*small, *one_epoch, *overrides, "OUTPUT_DIR", str(tmp_path)]
    output = run_together(2, "tools/run_net.py", "--cfg", DEMO, *run)
    assert "2 process(es)" in output
    assert "Warning: `broadcast_buffers`" not in output
    model, losses = trained_by_hand(load_config(DEMO, run), parts)
    lines = [
        line.removeprefix("json_stats: ") for line in (tmp_path / "json_stats.log").read_text().splitlines()
    ]
    logged = [line["loss"] for line in map(json.loads, lines) if line["_type"] == "train_iter_"]
    assert logged == pytest.approx(losses, rel=tolerance)
    state = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth")["model_state"]
    torch.manual_seed(integer_seed(0, Stream.WEIGHTS))
    initial = build.build_model(load_config(DEMO, run)).state_dict()
    expected = model.state_dict()
    for name, tensor in state.items():
        movement, error = (expected[name] - other for other in (initial[name], tensor))
        assert error.double().norm() <= 10 * tolerance * movement.double().norm() + 1e-6, name


HANGING = """
import time
from datetime import timedelta
import torch
import torch.distributed as dist
from video_iresnet.runtime import distributed
distributed.STEP_TIMEOUT = timedelta(seconds=1)
processes = distributed.Processes(use_gpu=False)
for step in range(2):
    if step == 1 and processes.rank == 1:
        time.sleep(6)
    begin = time.monotonic()
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError:
        print(f"process {processes.rank} gave up after {time.monotonic() - begin:.0f} s", flush=True)
        raise SystemExit(1)
    processes.expect_the_next_step()
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_soon_after_the_first_step() -> None:
    processes = start_together(2, "-c", HANGING)
    output = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert processes[0].returncode == 1
    # Not after the 6 s of the other process; the time itself depends on the machine.
    assert re.search(r"process 0 gave up after [0-4] s", output), output


READING = f"""
import hashlib, os, sys, warnings
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
sys.stderr = open(f"{{sys.argv[1]}}/errors_{{os.environ['RANK']}}.txt", "w")
warnings.simplefilter("ignore")
import pytest
from conftest import load_script
from video_iresnet import build, folder
from video_iresnet.data import packed

def refuse(*_, **__):
    raise AssertionError("only the main process reads lists and looks at videos")

def told(self, key, *more):
    found = records(self, key, *more)
    digest = hashlib.sha256(repr(list(found)).encode()).hexdigest()
    print(key, digest, found.fingerprint(), file=sys.stderr)
    return found

def told_store(self, *more):
    found = view_store(self, *more)
    print(found.folder.name, file=sys.stderr)
    return found

records, view_store = folder.Run.records, folder.Run.view_store
folder.Run.records, folder.Run.view_store = told, told_store
if os.environ["RANK"] == "1":
    for module, name in [
        (build, "read_records"), (build, "missing_videos"), (packed, "file_sizes"), (folder, "check_files"),
        (packed.PackedRecords, "__init__"),
    ]:
        setattr(module, name, refuse)
main = load_script("tools/run_net.py").main
for words in (sys.argv[2:], [*sys.argv[2:], "DATA.VAL_LIST", f"{{sys.argv[1]}}/bad.csv"]):
    print("ends with", main(words), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_only_the_main_process_reads_lists_and_looks_at_videos(
    small: list[str], shapes: Path, tmp_path: Path
) -> None:
    """The others get the same records; a mistake in a list ends all, in one line."""
    (tmp_path / "reading.py").write_text(READING)
    (tmp_path / "bad.csv").write_text("a.mp4 0\nb.mp4 8\n")
    run = [*small, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "OUTPUT_DIR", str(tmp_path / "run")]
    script = [str(tmp_path / "reading.py"), str(tmp_path), "--cfg", DEMO, *run]
    output = run_together(2, *script)
    lines, others = [(tmp_path / f"errors_{rank}.txt").read_text() for rank in range(2)]
    cfg = load_config(DEMO, run)
    (store,) = (tmp_path / "run/views").iterdir()
    expected = []
    for key in ("DATA.TRAIN_LIST", "DATA.VAL_LIST", "DATA.TEST_LIST"):
        records = build.build_records(cfg, key)
        digest = hashlib.sha256(repr(list(records)).encode()).hexdigest()
        expected.append(f"{key} {digest} {records.fingerprint()}")
    training, testing = "\n".join(expected), expected[-1]
    first = f"{training}\n{testing}\n{store.name}\nends with 0\n{expected[0]}\n"
    assert others == f"{first}ends with 1\n", output
    error = f"error: label 8 of line 2 of {tmp_path}/bad.csv is outside [0, 7]; correct the list, or "
    assert lines == f"{first}{error}MODEL.NUM_CLASSES (8)\nends with 1\n"


def test_one_process_makes_what_all_need() -> None:
    made = object()
    assert Processes(use_gpu=False).from_main(lambda: made) is made
    with pytest.raises(ZeroDivisionError):
        Processes(use_gpu=False).from_main(lambda: 1 // 0)
