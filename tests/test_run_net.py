"""Whole runs through tools/run_net.py: training, resuming, testing on several processes, and every kind of
bad input.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from conftest import DEMO, ROOT, WITH_CHECKS, RunNet, load_script, start, write_video
from PIL import Image

from video_iresnet import build
from video_iresnet.data.decode import PacketIndex, Reader
from video_iresnet.data.records import Record
from video_iresnet.engine.checkpoint import list_checkpoints, load_checkpoint
from video_iresnet.models import create_model


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])["model_state"])


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = last_weights(a), last_weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def stats_of(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = [
        json.loads(line.removeprefix("json_stats: "))
        for line in (folder / "json_stats.log").read_text().splitlines()
    ]
    return [line for line in lines if line["_type"] == kind]


@pytest.fixture(scope="module")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    """A finished run of the demo config at a small size."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_net(*small, *WITH_CHECKS, "OUTPUT_DIR", str(folder)) == 0
    return folder


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "config.yaml", "stdout.log", "json_stats.log", "tensorboard", "checkpoints", "results.json",
        "predictions.csv", "views", "stamp.json", "first_batch.png", "report.html", ".lock",
    }  # fmt: skip
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "checkpoint_epoch_00001.pyth", "checkpoint_epoch_00002.pyth", "checkpoint_best.pyth",
    }  # fmt: skip
    steps = stats_of(trained, "train_iter_")
    assert [(s["epoch"], s["iter"]) for s in steps] == [
        (f"{e}/2", f"{i}/3") for e in (1, 2) for i in (1, 2, 3)
    ]
    assert {"dt", "dt_data", "dt_net", "eta", "loss", "lr", "gpu_mem", "top1_err", "top5_err"} <= set(
        steps[0]
    )
    # A line from 0.01 to the cosine's middle in the first epoch, then the cosine from 0.03 down.
    rates = [0.01, 0.01 + 0.005 / 3, 0.01 + 0.01 / 3, 0.015, 0.0075, 0.015 * (1 - 0.75**0.5)]
    assert [s["lr"] for s in steps] == pytest.approx(rates, abs=5e-6)
    assert [s["epoch"] for s in stats_of(trained, "train_epoch")] == ["1/2", "2/2"]
    assert [s["epoch"] for s in stats_of(trained, "val_epoch")] == ["2/2"]
    assert list((trained / "tensorboard").glob("events.*"))
    state = load_checkpoint(trained / "checkpoints/checkpoint_epoch_00002.pyth")
    assert (state["epoch"], state["position"]["step"], len(state["class_names"])) == (1, 0, 8)


def test_results_agree_with_predictions(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    with open(trained / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == results["num_videos"] == 11
    top1 = 100 * sum(row["label"] == row["top1"] for row in rows) / 11
    top5 = 100 * sum(row["label"] in [row[f"top{k}"] for k in range(1, 6)] for row in rows) / 11
    assert (results["top1_acc"], results["top5_acc"]) == pytest.approx((top1, top5))
    assert (results["num_failed"], results["protocol"]) == (0, "2x3 @32, clips of 4x2")
    assert set(results["by_views"]) == {"1x1", "1x3", "2x1", "2x3"}
    assert set(results["temporal_checks"]) == {"reversed", "shuffled", "frozen"}
    assert results["checkpoint"].endswith("checkpoint_epoch_00002.pyth")
    assert all(
        sorted(p, reverse=True) == p for p in ([float(row[f"prob{k}"]) for k in range(1, 6)] for row in rows)
    )


def test_the_same_seed_gives_the_same_run(
    trained: Path, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "DATA_LOADER.NUM_WORKERS", "2") == 0
    assert_same_weights(trained, tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
    assert [s["loss"] for s in stats_of(tmp_path, "train_iter_")] == [
        s["loss"] for s in stats_of(trained, "train_iter_")
    ]


def wait_for_step(process: subprocess.Popen[str], folder: Path, epoch: int, step: int) -> None:
    """Until the run has logged a step."""
    wanted = f'"epoch": "{epoch}/'
    for _ in range(6000):
        log = folder / "json_stats.log"
        if log.exists() and any(
            wanted in line and f'"iter": "{step}/' in line for line in log.read_text().splitlines()
        ):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the run did not get there")


# Enough short steps that a signal arrives in the middle of an epoch.
LONG = ["TRAIN.BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "3", "MODEL.DROPOUT_RATE", "0.5", "TEST.ENABLE", "False"]


@pytest.fixture(scope="module")
def uninterrupted(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run_net(*small, *LONG, "OUTPUT_DIR", str(folder)) == 0
    return folder


def test_a_run_that_was_ended_goes_on_as_if_nothing_had_happened(
    uninterrupted: Path, small: list[str], tmp_path: Path, run_net: RunNet, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed in the first epoch, and stopped by Ctrl-C and by SIGTERM in the two after it."""
    overrides = [*small, *LONG, "OUTPUT_DIR", str(tmp_path)]
    for epoch, number in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), 1):
        saved = list_checkpoints(tmp_path / "checkpoints")
        process = start("tools/run_net.py", "--cfg", DEMO, *overrides)
        wait_for_step(process, tmp_path, epoch, 3)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert ("resuming from" in output) == bool(saved)
        if number == signal.SIGKILL:
            assert process.returncode == -number, output
            continue
        assert process.returncode == 128 + number, output
        assert re.search(
            rf"stopped in epoch {epoch} after step \d+ of 12; saved "
            rf".*checkpoint_epoch_0000{epoch - 1}_step_0000\d+.pyth\ngo on with: "
            "python tools/run_net.py --cfg",
            output,
        )
        assert "Traceback" not in output
    assert run_net(*overrides, "TRAIN.BATCH_SIZE", "8") == 1
    error = capfd.readouterr().err
    assert "TRAIN.BATCH_SIZE was 2 and is 8, which can change only between two epochs" in error
    assert run_net(*overrides) == 0
    assert "resuming from" in capfd.readouterr().out
    assert_same_weights(uninterrupted, tmp_path)
    ours, theirs = (stats_of(folder, "train_epoch") for folder in (tmp_path, uninterrupted))
    assert [s["loss"] for s in ours[-2:]] == [s["loss"] for s in theirs[-2:]]


@pytest.mark.parametrize("epochs", ["2", "1"])
def test_a_finished_run_is_left_alone(
    epochs: str, trained: Path, small: list[str], run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (trained / "checkpoints").iterdir()}
    shorter = ["SOLVER.MAX_EPOCH", epochs, "SOLVER.WARMUP_EPOCHS", "0"]
    assert run_net(*small, *shorter, "OUTPUT_DIR", str(trained), "TEST.ENABLE", "False") == 0
    assert "training was complete after 2 epochs" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (trained / "checkpoints").iterdir()} == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and there is none")
def test_training_and_testing_on_a_gpu(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    assert run_net(*small, "NUM_GPUS", "1", "OUTPUT_DIR", str(tmp_path)) == 0
    assert ", cuda" in (tmp_path / "stdout.log").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["num_failed"] == 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_two_processes_stop_in_order(small: list[str], tmp_path: Path) -> None:
    process = start(
        "tools/run_net.py",
        "--cfg",
        DEMO,
        *small,
        *LONG,
        "TRAIN.BATCH_SIZE",
        "4",
        "NUM_GPUS",
        "2",
        "OUTPUT_DIR",
        str(tmp_path),
    )
    wait_for_step(process, tmp_path, 1, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert re.search(r"saved .*checkpoint_epoch_0000\d_step_0000\d+.pyth\ngo on with: python ", output)


@pytest.fixture(scope="module")
def large_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for i in range(4):
        write_video(folder / f"{i}.mp4", 90, size=(120, 160))
    for name, count in {"train.csv": 4, "val.csv": 1, "test.csv": 1}.items():
        (folder / name).write_text("".join(f"{i}.mp4 {i * 40}\n" for i in range(count)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", ["kinetics/iR3D50.yaml", "ssv2/iR3D50.yaml"])
def test_full_size_configs_take_two_steps(
    config: str, large_videos: Path, tmp_path: Path, run_net: RunNet
) -> None:
    """With clips of full size, by a narrow network; test_config runs the wide ones on the meta device."""
    overrides = f"""DATA.PATH_TO_DATA_DIR {large_videos} RESNET.WIDTH_PER_GROUP 4 TRAIN.BATCH_SIZE 2
    DATA_LOADER.NUM_WORKERS 0 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0 SOLVER.BASE_LR 0.001
    OUTPUT_DIR {tmp_path} LOG_PERIOD 1 TEST.ENABLE False""".split()
    assert run_net(*overrides, "DATA.CLASS_NAMES", "", cfg=str(ROOT / "configs" / config)) == 0
    assert [s["iter"] for s in stats_of(tmp_path, "train_iter_")] == ["1/2", "2/2"]
    assert int(last_weights(tmp_path)["bn1.num_batches_tracked"]) == 2


def test_two_configs_run_one_after_the_other(
    small: list[str], shapes: Path, tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {DEMO}\nOUTPUT_DIR: {tmp_path}/{name}\n")
    assert (
        run_net(
            str(tmp_path / "b.yaml"),
            "--opts",
            *small,
            "SOLVER.MAX_EPOCH",
            "1",
            "SOLVER.WARMUP_EPOCHS",
            "0",
            cfg=str(tmp_path / "a.yaml"),
        )
        == 0
    )
    assert (tmp_path / "a/results.json").exists()
    assert (tmp_path / "b/results.json").exists()


def test_a_test_counts_broken_videos_as_failed(
    trained: Path, shapes: Path, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    lines = (shapes / "test.csv").read_text().splitlines()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "test.csv").write_text(
        "\n".join(f"{shapes}/{line}" for line in lines[:6])
        + f"\n{tmp_path}/empty.mp4 0\n{tmp_path}/gone.mp4 1\n"
    )
    (tmp_path / "classes.txt").write_bytes((shapes / "classes.txt").read_bytes())
    checkpoint = str(trained / "checkpoints/checkpoint_best.pyth")
    test = [
        "TRAIN.ENABLE",
        "False",
        "TEST.CHECKPOINT_FILE_PATH",
        checkpoint,
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    assert run_net(*small, *test, "DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.TEST_SHORT_SIDE", "40") == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["num_videos"], results["num_failed"]) == (8, 2)
    assert results["protocol"] == "2x3 @32 of short side 40, clips of 4x2"
    assert results["top1_acc"] == pytest.approx(results["top1_acc_readable"] * 6 / 8)
    with open(tmp_path / "out/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False] * 6 + [True] * 2
    assert rows[6]["top1"] == ""


@pytest.mark.parametrize("kind", ["frames", "folders"])
def test_training_and_testing_on_extracted_frames(
    kind: str, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    """Folders of JPEGs, by PySlowFast's lists and by TSM's."""
    rng = np.random.default_rng(0)
    for video in range(9):
        for number in range(1, 7):
            path = tmp_path / f"frames/{video}/{video}_{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 52, 3), np.uint8)).save(path)
    header = "original_vido_id video_id frame_id path labels\n"
    rows = "".join(f'{v} {v} {i} {v}/{v}_{i + 1:06d}.jpg ""\n' for v in range(9) for i in range(6))
    (tmp_path / "list.csv").write_text(header + rows)
    (tmp_path / "list.txt").write_text("".join(f"{video} 6 {video % 8}\n" for video in range(9)))
    (tmp_path / "something-something-v2-labels.json").write_text(
        json.dumps({f"Doing {i}": str(i) for i in range(8)})
    )
    for split in ("train", "validation"):
        entries = [{"id": str(v), "template": f"Doing [{v % 8}]"} for v in range(9)]
        (tmp_path / f"something-something-v2-{split}.json").write_text(json.dumps(entries))
    name = "list.csv" if kind == "frames" else "list.txt"
    lists = [word for key in ("TRAIN", "VAL", "TEST") for word in (f"DATA.{key}_LIST", name)]
    more = [
        "DATA.PATH_TO_DATA_DIR",
        str(tmp_path),
        "DATA.PATH_PREFIX",
        "frames",
        "DATA.LIST_FORMAT",
        kind,
        "DATA.CLASS_NAMES",
        "",
    ]
    more += [
        "DATA.FRAME_NAMES",
        "{folder}_%06d.jpg",
        "DATA.SAMPLER",
        "segments",
        "SOLVER.MAX_EPOCH",
        "1",
        "SOLVER.WARMUP_EPOCHS",
        "0",
    ]
    assert run_net(*small, *more, *lists, "OUTPUT_DIR", str(tmp_path / "out")) == 0
    with open(tmp_path / "out/predictions.csv") as file:
        assert [(row["video"], row["label"], row["error"]) for row in csv.DictReader(file)] == [
            (str(v), str(v % 8), "") for v in range(9)
        ]


def test_strong_augmentation_trains(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    strong = """AUG.NUM_SAMPLE 2 AUG.COLOR_JITTER 0.2 AUG.RAND_MAGNITUDE 7 AUG.RE_PROB 0.25 MIXUP.ENABLE True
    MIXUP.LABEL_SMOOTH_VALUE 0.1 DATA.TRAIN_JITTER_SCALES_RELATIVE [0.3,1]
    DATA.TRAIN_JITTER_ASPECT_RELATIVE [0.75,1.33] TEST.ENABLE False"""
    assert run_net(*small, *strong.split(), "OUTPUT_DIR", str(tmp_path)) == 0
    steps = stats_of(tmp_path, "train_iter_")
    assert [s["iter"] for s in steps] == [f"{i}/6" for i in range(1, 7)] * 2
    assert all(0 < float(str(s["loss"])) < 10 for s in steps)


def killed(record: Record, backend: str, index: PacketIndex) -> Reader:
    """What the system does to a worker without memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def endless(record: Record, backend: str, index: PacketIndex) -> Reader:
    time.sleep(60)
    raise AssertionError


@pytest.mark.parametrize(
    ("opener", "message"),
    [
        (killed, r"a decoding worker \(pid \d+\) was killed, .* while reading /\S*train_\d+.mp4; "),
        (endless, r"no batch came for 2 s \(DATA_LOADER.TIMEOUT\); .* reading /\S*train_\d+.mp4 for \d s; "),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run_with_its_file(
    opener: Callable[..., Reader], message: str, small: list[str], tmp_path: Path, run_net: RunNet,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(build, "open_video", opener)
    more = ["DATA_LOADER.NUM_WORKERS", "1", "DATA_LOADER.TIMEOUT", "2", "TEST.ENABLE", "False"]
    assert run_net(*small, *more, "OUTPUT_DIR", str(tmp_path)) == 1
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)


def test_fewer_than_five_classes(shapes: Path, small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    for name in ("train", "val", "test"):
        lines = [line.split() for line in (shapes / f"{name}.csv").read_text().splitlines()]
        (tmp_path / f"{name}.csv").write_text(
            "".join(f"{shapes}/{path},{int(label) % 2}\n" for path, label in lines)
        )
    more = [
        "DATA.PATH_TO_DATA_DIR",
        str(tmp_path),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        "MODEL.NUM_CLASSES",
        "2",
        "DATA.CLASS_NAMES",
        "",
    ]
    assert run_net(*small, *more, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0") == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["top5_acc"] == 100
    assert (
        (tmp_path / "out/predictions.csv").read_text().startswith("video,label,top1,top2,prob1,prob2,error\n")
    )


def test_training_replaces_and_limits_broken_videos(
    shapes: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (shapes / "train.csv").read_text().splitlines()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "train.csv").write_text(
        "\n".join(f"{shapes}/{line}" for line in lines[:-1]) + f"\n{tmp_path}/empty.mp4 0\n"
    )
    more = ["DATA.TRAIN_LIST", str(tmp_path / "train.csv"), "TEST.ENABLE", "False", "TRAIN.BATCH_SIZE", "24"]
    assert run_net(*small, *more, "OUTPUT_DIR", str(tmp_path / "a"), "DATA.MAX_BAD_FRACTION", "0.1") == 0
    assert capsys.readouterr().out.count("empty.mp4: Invalid data") == 1
    assert run_net(*small, *more, "OUTPUT_DIR", str(tmp_path / "b")) == 1
    assert re.search(
        r"error: 1 of 24 training videos cannot be read, .*empty.mp4 \(Invalid data", capsys.readouterr().err
    )


def test_weights_that_are_not_finite_are_neither_trained_nor_tested(
    trained: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(trained / "checkpoints/checkpoint_epoch_00002.pyth")
    state["model_state"]["layer2.1.bn1.running_var"][1] = float("nan")
    torch.save(state, tmp_path / "nan.pyth")
    for phase, other in (("TRAIN", "TEST"), ("TEST", "TRAIN")):
        weights = [f"{other}.ENABLE", "False", f"{phase}.CHECKPOINT_FILE_PATH", str(tmp_path / "nan.pyth")]
        assert run_net(*small, *weights, "OUTPUT_DIR", str(tmp_path / phase)) == 1
        assert (
            "nan.pyth: layer2.1.bn1.running_var holds values that are not finite" in capsys.readouterr().err
        )
        assert not (tmp_path / phase / "results.json").exists()


def test_a_video_that_overflows_is_counted_and_named(
    trained: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are finite, with a scale between those at which no video and every video overflows."""
    state = load_checkpoint(trained / "checkpoints/checkpoint_epoch_00002.pyth")
    weight = state["model_state"]["fc.weight"].clone()
    state["model_state"]["fc.bias"].zero_()
    low, high = 36.0, 38.5
    for _ in range(12):
        scale = (low + high) / 2
        state["model_state"]["fc.weight"] = (weight.double() / weight.abs().max() * 10**scale).float()
        torch.save(state, tmp_path / "w.pyth")
        test = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "w.pyth")]
        code = run_net(*small, *test, "OUTPUT_DIR", str(tmp_path / "out"))
        output = capsys.readouterr()
        if code:
            high = scale
            continue
        with open(tmp_path / "out/predictions.csv") as file:
            rows = list(csv.DictReader(file))
        failed = [row for row in rows if row["error"]]
        if failed:
            break
        low = scale
    assert 0 < len(failed) < 11
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["num_failed"] == len(failed)
    right = sum(row["top1"] == row["label"] for row in rows)
    assert results["top1_acc"] == pytest.approx(100 * right / 11)
    assert results["top1_acc_readable"] == pytest.approx(100 * right / (11 - len(failed)))
    for row in failed:
        assert re.fullmatch(r"the network's logits are not finite in \d of 6 views", row["error"])
        assert f"{row['video']}: {row['error']}; counted as failed" in output.out
    assert "nan" not in (tmp_path / "out/predictions.csv").read_text()


BAD_INPUT = {
    "SOLVER.BAS_LR 1": "unknown key SOLVER.BAS_LR",
    "TRAIN.BATCH_SIZE many": "expected a whole number",
    "DATA.TRAIN_LIST gone.csv": r"DATA.TRAIN_LIST: .*gone.csv does not exist",
    "DATA.TEST_LIST gone.csv": r"DATA.TEST_LIST: .*gone.csv does not exist",
    "DATA.TRAIN_LIST EMPTY": "is empty",
    "DATA.VAL_LIST MALFORMED": "line 2 of",
    "DATA.TEST_LIST RANGE": r"label 8 of line 1 of .* is outside \[0, (7\]|8\))",
    "DATA.TRAIN_LIST MISSING": (
        r"4 of the 8 videos of DATA.TRAIN_LIST do not exist, first \S*gone0.mp4, \S*gone1.mp4, \S*gone2.mp4;"
    ),
    "DATA.CLASS_NAMES RANGE": "names 1 classes, but MODEL.NUM_CLASSES is 8",
    "TRAIN.BATCH_SIZE 25": "TRAIN.BATCH_SIZE 25 is more than the 24 videos",
    "TRAIN.ENABLE False": "no weights to test",
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH gone.pyth": (
        "TEST.CHECKPOINT_FILE_PATH: gone.pyth does not exist"
    ),
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH EMPTY": "weights .* cannot be read",
    "TRAIN.CHECKPOINT_FILE_PATH TRAINED RESNET.DEPTH 34": (
        r"fit \d+.\d % of the tensors of iresnet-34 .*; it lacks \d+ tensors, layer1.2.bn0.weight first"
    ),
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH TRAINED MODEL.NUM_CLASSES 9 DATA.CLASS_NAMES NONE": (
        "8 classes in the file, 9 in the network"
    ),
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH TRAINED MODEL.ARCH resnet": (
        "was trained with MODEL.ARCH iresnet, but it is resnet; set it to iresnet"
    ),
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH TRAINED RESNET.TEMPORAL_STRIDES [1,2,2,1]": (
        r"was trained with RESNET.TEMPORAL_STRIDES \[\], but"
    ),
    "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH TRAINED DATA.CLASS_NAMES OTHER": (
        "was trained on classes with other names or in another order"
    ),
    "OUTPUT_DIR EMPTY": "OUTPUT_DIR .* cannot be written to",
    "OUTPUT_DIR /proc/nowhere": "OUTPUT_DIR /proc/nowhere cannot be written to",
    "SOLVER.BASE_LR 1000 SOLVER.WEIGHT_DECAY 1.0 SOLVER.WARMUP_EPOCHS 0": "gradient was not finite",
}


@pytest.mark.parametrize("overrides", BAD_INPUT)
def test_bad_input_is_one_clear_line(
    overrides: str,
    shapes: Path,
    trained: Path,
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lists = (shapes / "train.csv").read_text().splitlines()
    names = {
        "EMPTY": "",
        "MALFORMED": f"{shapes}/{lists[0]}\nno label here\n",
        "RANGE": f"{shapes}/videos/train_0000.mp4 8\n",
        "OTHER": "".join(f"class {i}\n" for i in range(8)),
        "MISSING": "".join(f"{shapes}/{line}\n" for line in lists[:4])
        + "".join(f"gone{i}.mp4 0\n" for i in range(4)),
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    words = [str(tmp_path / word) if word in names else word for word in overrides.split()]
    words = [
        str(trained / "checkpoints/checkpoint_best.pyth")
        if word == "TRAINED"
        else ""
        if word == "NONE"
        else word
        for word in words
    ]
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path / "out"), *words) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: [^\n]*({BAD_INPUT[overrides]})[^\n]*\n", error), error


def test_an_earlier_run_is_not_overwritten(
    trained: Path, small: list[str], run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_net(*small, "OUTPUT_DIR", str(trained), "TRAIN.AUTO_RESUME", "False") == 1
    assert "contains checkpoints of an earlier run" in capsys.readouterr().err


def test_training_can_start_from_weights(
    trained: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "checkpoints/checkpoint_epoch_00002.pyth")
    more = [
        "TRAIN.CHECKPOINT_FILE_PATH",
        checkpoint,
        "SOLVER.BASE_LR",
        "1e-9",
        "SOLVER.WARMUP_START_LR",
        "0",
        "TEST.ENABLE",
        "False",
    ]
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), *more, "SOLVER.WARMUP_EPOCHS", "0") == 0
    assert "starting from the weights of" in capsys.readouterr().out
    torch.testing.assert_close(
        last_weights(tmp_path)["fc.weight"], last_weights(trained)["fc.weight"], rtol=1e-5, atol=1e-7
    )


def test_fine_tuning_from_image_weights_with_other_classes(
    small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    image_net = create_model("iresnet", 18, dims=2, width=4, num_classes=1000)
    torch.save({"state_dict": image_net.state_dict()}, tmp_path / "image.pth")
    weights = [
        "TRAIN.CHECKPOINT_FILE_PATH",
        str(tmp_path / "image.pth"),
        "TRAIN.CHECKPOINT_INFLATE",
        "center",
    ]
    frozen = [
        "SOLVER.BASE_LR",
        "1e-9",
        "SOLVER.WARMUP_EPOCHS",
        "0",
        "TEST.ENABLE",
        "False",
        "MODEL.ACT_CHECKPOINT",
        "True",
    ]
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path / "out"), *weights, *frozen) == 0
    log = capsys.readouterr().out
    assert (
        "1000 classes in the file, 8 in the network, whose head is reinitialized: fc.weight, fc.bias" in log
    )
    assert re.search(r"identical frames give the image network's logits to \d\.\de-1\d", log)
    torch.testing.assert_close(
        last_weights(tmp_path / "out")["conv1.weight"][:, :, 2],
        image_net.conv1.weight.detach(),
        rtol=1e-5,
        atol=1e-6,
    )
    assert int(last_weights(tmp_path / "out")["layer1.0.bn1.num_batches_tracked"]) == 6


@pytest.mark.parametrize("other", ["TRAIN: {BATCH_SIZE: 8}", "a: [", "text", {"RESNET": 3}, 7])
def test_weights_with_the_config_of_another_project_are_tested(
    other: object, trained: Path, small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    """What others keep under `cfg` and `class_names` is no concern of ours."""
    torch.save({"model_state": last_weights(trained), "cfg": other, "class_names": 8}, tmp_path / "w.pyth")
    test = [
        "TRAIN.ENABLE",
        "False",
        "TEST.CHECKPOINT_FILE_PATH",
        str(tmp_path / "w.pyth"),
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    assert run_net(*small, *test) == 0
    assert (tmp_path / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()


def test_weights_of_other_class_names_are_noted(
    trained: Path,
    shapes: Path,
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "names.txt").write_text("".join(f"class {i}\n" for i in range(8)))
    weights = [
        "TRAIN.CHECKPOINT_FILE_PATH",
        str(trained / "checkpoints/checkpoint_best.pyth"),
        "DATA.CLASS_NAMES",
        str(tmp_path / "names.txt"),
    ]
    assert (
        run_net(
            *small,
            *weights,
            "OUTPUT_DIR",
            str(tmp_path),
            "SOLVER.MAX_EPOCH",
            "1",
            "SOLVER.WARMUP_EPOCHS",
            "0",
            "TEST.ENABLE",
            "False",
        )
        == 0
    )
    assert "which has other class names: " in capsys.readouterr().out


def test_exported_weights_test_as_the_checkpoint_does(
    trained: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    export = load_script("tools/export.py").main
    checkpoint, out = (
        str(trained / "checkpoints/checkpoint_epoch_00002.pyth"),
        str(tmp_path / "w.safetensors"),
    )
    assert export(["--checkpoint", checkpoint, "--out", out]) == 0
    assert "122 tensors, 8 class names" in capsys.readouterr().out
    assert export(["--checkpoint", checkpoint, "--out", out]) == 1
    assert re.fullmatch(r"error: --out \S* exists; name another one, or remove it\n", capsys.readouterr().err)
    assert (
        run_net(
            *small,
            "TRAIN.ENABLE",
            "False",
            "TEST.CHECKPOINT_FILE_PATH",
            out,
            "OUTPUT_DIR",
            str(tmp_path / "out"),
        )
        == 0
    )
    assert (tmp_path / "out/predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()
