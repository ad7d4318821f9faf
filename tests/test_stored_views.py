"""Tests of networks through tools/run_net.py: what they store, and that a test that was ended goes on."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO, ROOT, WITH_CHECKS, RunNet, load_script, run_together, start_together

from video_iresnet import build
from video_iresnet.changes import TESTED
from video_iresnet.config import default_config, leaves, load_config
from video_iresnet.data.decode import DecodeError, PacketIndex, Reader, open_video
from video_iresnet.data.records import Record
from video_iresnet.engine import views
from video_iresnet.engine.checkpoint import save_checkpoint
from video_iresnet.engine.views import StoredVideo, ViewStore

on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU"
)


@pytest.fixture(scope="module")
def checkpoint(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as they are drawn."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pyth"
    save_checkpoint(path, {"model_state": build.build_model(load_config(DEMO, small)).state_dict()})
    return path


@pytest.fixture(scope="module")
def command(small: list[str], checkpoint: Path) -> list[str]:
    """A test of 11 videos, in 11 groups, with the temporal checks of the demo."""
    weights = ["TEST.CHECKPOINT_FILE_PATH", str(checkpoint)]
    return [*small, *WITH_CHECKS, "TRAIN.ENABLE", "False", *weights, "OUTPUT_DIR"]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert load_script("tools/run_net.py").main(["--cfg", DEMO, *command, str(folder)]) == 0
    return folder


def results_of(folder: Path) -> dict[str, object]:
    """results.json but for the time."""
    results = json.loads((folder / "results.json").read_text())
    assert isinstance(results, dict)
    return results | {"seconds": 0}


def videos_of(folder: Path) -> list[StoredVideo]:
    (store,) = (folder / "views").iterdir()
    assert not [path for path in store.iterdir() if path.suffix != ".sqlite"]
    return list(ViewStore.open(store))


def assert_same(a: Path, b: Path) -> None:
    """The numbers, the files of results and every stored bit."""
    assert results_of(a) == results_of(b)
    assert (a / "predictions.csv").read_bytes() == (b / "predictions.csv").read_bytes()
    ours, theirs = videos_of(a), videos_of(b)
    assert len(ours) == len(theirs) == 11
    for one, other in zip(ours, theirs, strict=True):
        assert (one[:3], one.error, one.outputs.keys()) == (other[:3], other.error, other.outputs.keys())
        for order in one.outputs:
            for name, array in one.outputs[order].items():
                assert np.array_equal(array, other.outputs[order][name])


def test_a_test_stores_its_views(whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = results_of(whole)
    (store,) = (whole / "views").iterdir()
    assert results["views"] == f"views/{store.name}"
    for video in videos_of(whole):
        assert set(video.outputs) == {"", "reversed", "shuffled", "frozen"}
        for arrays in video.outputs.values():
            assert arrays["probabilities"].shape == (2, 3, 8)
            assert arrays["normalizer"].shape == (2, 3)
    low, high = json.loads((whole / "results.json").read_text())["top1_acc_interval"]
    assert 0 <= low <= float(str(results["top1_acc"])) <= high <= 100
    out = tmp_path / "out.json"
    assert load_script("tools/aggregate.py").main([str(whole), "--json", str(out)]) == 0
    assert out.read_bytes() == (whole / "results.json").read_bytes()
    assert "expected calibration error" in capsys.readouterr().out


def stop_after(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Write each group at once, and ask to stop after some."""
    append, count = ViewStore.append, [0]

    def counted(*arguments: object) -> None:
        append(*arguments)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == groups:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(views, "PERIOD", 0.0)
    monkeypatch.setattr(ViewStore, "append", counted)


def test_a_test_that_was_stopped_goes_on(
    whole: Path, command: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert run_net(*command, str(tmp_path)) == 130
    assert re.search(r"stopped while testing; the views so far are in \S*views/\S*", capsys.readouterr().err)
    assert not (tmp_path / "results.json").exists()
    (store,) = (tmp_path / "views").iterdir()
    assert len(ViewStore.open(store).records()) == 4
    assert load_script("tools/aggregate.py").main([str(tmp_path)]) == 1
    assert re.fullmatch(r"error: 7 of 11 videos are not in .* it continues .*\n", capsys.readouterr().err)
    assert run_net(*command, str(tmp_path)) == 0
    assert "4 of 11 videos were tested before" in capsys.readouterr().out
    assert_same(tmp_path, whole)
    assert run_net(*command, str(tmp_path)) == 0
    assert "11 of 11 videos were tested before" in capsys.readouterr().out
    assert_same(tmp_path, whole)


def test_failed_videos_are_tried_again(
    whole: Path, command: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As after an error of a disk, which changes no file."""

    def broken(record: Record, backend: str, index: PacketIndex) -> Reader:
        if record.name.endswith(("test_0002.mp4", "test_0007.mp4")):
            raise DecodeError("the disk is gone")
        return open_video(record, backend=backend)

    two = ["TEST.BATCH_SIZE", "14"]  # views of two videos
    with monkeypatch.context() as patch:
        patch.setattr(build, "open_video", broken)
        assert run_net(*command, str(tmp_path), *two) == 0
    assert results_of(tmp_path)["num_failed"] == 2
    assert run_net(*command, str(tmp_path), *two) == 0
    assert "7 of 11 videos were tested before" in capsys.readouterr().out
    assert results_of(tmp_path)["num_failed"] == 0
    assert run_net(*command, str(tmp_path / "again"), *two) == 0
    assert_same(tmp_path, tmp_path / "again")


KILLED = """
import os, signal, sys
from video_iresnet.data.decode import DecodeError, Reader, open_video
from video_iresnet.data.records import Record
from video_iresnet.engine import views
append, left = views.ViewStore.append, [int(os.environ["GROUPS"])]
def counted(*arguments):
    append(*arguments)
    left[0] -= 1
    if left[0] == 0 and os.environ.get("RANK", "0") == os.environ["KILLED_RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
views.ViewStore.append, views.PERIOD = counted, 0.0
"""


@pytest.mark.slow
@on_the_cpu
@pytest.mark.parametrize(("sizes", "groups"), [((1, 2), (3, 2)), ((3, 1), (1, 2))])
def test_a_test_that_was_killed_goes_on_with_any_number_of_processes(
    sizes: tuple[int, ...], groups: tuple[int, ...], whole: Path, command: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One process of each start is killed once it has stored some groups."""
    script = tmp_path / "run_killed.py"
    tool = str(ROOT / "tools/run_net.py")
    script.write_text(
        f"import runpy, sys\nsys.path[:0] = [{str(ROOT)!r}]\n{KILLED}\n"
        f"sys.argv[0] = {tool!r}\nrunpy.run_path({tool!r}, run_name='__main__')\n"
    )
    for size, count in zip(sizes, groups, strict=True):
        monkeypatch.setenv("GROUPS", str(count))
        monkeypatch.setenv("KILLED_RANK", str(size - 1))
        processes = start_together(size, str(script), "--cfg", DEMO, *command, str(tmp_path / "out"))
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [1] * (size - 1) + [-signal.SIGKILL], outputs
    monkeypatch.undo()
    assert load_script("tools/run_net.py").main(["--cfg", DEMO, *command, str(tmp_path / "out")]) == 0
    (store,) = (tmp_path / "out/views").iterdir()
    assert len(list(store.iterdir())) > 1
    assert_same(tmp_path / "out", whole)


@pytest.mark.slow
@on_the_cpu
@pytest.mark.parametrize("size", [2, 3])
def test_stored_views_do_not_depend_on_processes(
    size: int, whole: Path, command: list[str], tmp_path: Path
) -> None:
    run_together(size, "tools/run_net.py", "--cfg", DEMO, *command, str(tmp_path))
    (store,) = (tmp_path / "views").iterdir()
    assert len(list(store.iterdir())) == size
    assert_same(tmp_path, whole)


def test_half_precision_and_off(whole: Path, command: list[str], tmp_path: Path, run_net: RunNet) -> None:
    half, off = tmp_path / "half", tmp_path / "off"
    assert run_net(*command, str(half), "TEST.STORED_VIEWS", "float16") == 0
    assert run_net(*command, str(off), "TEST.STORED_VIEWS", "off") == 0
    assert results_of(off) == results_of(whole) | {"views": ""}
    assert not (off / "views").exists()
    for rounded, video in zip(videos_of(half), videos_of(whole), strict=True):
        expected = video.outputs[""]["probabilities"].astype(np.float16)
        assert np.array_equal(rounded.outputs[""]["probabilities"], expected)
    name = results_of(half)["views"]
    assert name != results_of(whole)["views"]
    first = (half / "predictions.csv").read_text().splitlines()[1].split(",")
    mean = videos_of(half)[0].outputs[""]["probabilities"].astype(np.float64).mean((0, 1))
    assert float(first[7]) == pytest.approx(mean.max(), abs=1e-6)


def other_weights(checkpoint: Path, data: Path) -> list[str]:
    state = torch.load(checkpoint, weights_only=True)
    state["model_state"]["fc.bias"][3] += 1e-3
    torch.save(state, data / "w.pyth")
    return ["TEST.CHECKPOINT_FILE_PATH", str(data / "w.pyth")]


def same_weights_elsewhere(checkpoint: Path, data: Path) -> list[str]:
    (data / "w.pyth").write_bytes(checkpoint.read_bytes())
    return ["TEST.CHECKPOINT_FILE_PATH", str(data / "w.pyth")]


def a_video_of_another_size(checkpoint: Path, data: Path) -> list[str]:
    with open(data / "videos/test_0003.mp4", "ab") as file:
        file.write(b"\0")
    return []


def a_shorter_list(checkpoint: Path, data: Path) -> list[str]:
    lines = (data / "test.csv").read_text().splitlines(keepends=True)
    (data / "test.csv").write_text("".join(lines[:-1]))
    return []


CHANGES: dict[str, tuple[Callable[[Path, Path], list[str]], bool]] = {
    "weights": (other_weights, True),
    "moved weights": (same_weights_elsewhere, False),
    "a video": (a_video_of_another_size, True),
    "the list": (a_shorter_list, True),
    "clips": (lambda *_: ["DATA.SAMPLING_RATE", "1"], True),
    "batch": (lambda *_: ["TEST.BATCH_SIZE", "6"], True),
    "folded": (lambda *_: ["TEST.FOLD_BN", "True"], True),
    "workers": (lambda *_: ["DATA_LOADER.NUM_WORKERS", "1", "LOG_PERIOD", "3"], False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_numbers_is_another_test(
    change: str, shapes: Path, checkpoint: Path, command: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    data, out = tmp_path / "data", str(tmp_path / "out")
    (data / "videos").mkdir(parents=True)
    for path in [*shapes.glob("*.*"), *shapes.glob("videos/test*")]:
        (data / path.relative_to(shapes)).write_bytes(path.read_bytes())
    lines = (data / "test.csv").read_text().splitlines(keepends=True)
    (data / "test.csv").write_text("".join(lines[:5]))
    there = [*command, out, "DATA.PATH_TO_DATA_DIR", str(data), "TEST.TEMPORAL_CHECKS", "False"]
    assert run_net(*there) == 0
    make, is_another = CHANGES[change]
    assert run_net(*there, *make(checkpoint, data)) == 0
    assert len(list((tmp_path / "out/views").iterdir())) == 1 + is_another


def test_every_key_is_known_to_change_a_test_or_not() -> None:
    """A new key belongs to one or the other."""
    training = (
        "WANDB.",
        "MULTIGRID.",
        "TRAIN.",
        "SOLVER.",
        "BN.",
        "AUG.",
        "MIXUP.",
        "DATA.TRAIN_JITTER_",
        "DATA_LOADER.",
    )
    without = {
        "OUTPUT_DIR", "NUM_GPUS", "LOG_PERIOD",
        "TEST.ENABLE", "TEST.CHECKPOINT_FILE_PATH",  # the tensors count
        "TEST.STORED_VIEWS",  # the type of the stored numbers counts
        "DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "DATA.TEST_LIST",  # the videos count
        "DATA.PATH_LABEL_SEPARATOR", "DATA.CLASS_NAMES",
        "DATA.TRAIN_LIST", "DATA.VAL_LIST", "DATA.MAX_BAD_FRACTION", "DATA.RANDOM_FLIP",
        "DATA.INV_UNIFORM_SAMPLE", "DATA.TRAIN_PADDING",
        "MODEL.DROPOUT_RATE", "MODEL.ACT_CHECKPOINT", "RESNET.ZERO_INIT_RESIDUAL",
        "MODEL.FROZEN_STAGES", "MODEL.FROZEN_BN", "TEST.EMA",  # the tensors count
    }  # fmt: skip
    keys = {key for key, _ in leaves(default_config()) if not key.startswith(training)}
    assert len(set(TESTED)) == len(TESTED)
    assert set(TESTED) | without == keys
    assert not set(TESTED) & without
