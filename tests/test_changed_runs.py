"""Output folders that other runs use or used: who may write there, and with which config a run goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import DEMO, ROOT, RunNet, load_script, start_together
from test_storage import HOLD

from video_iresnet import folder, run
from video_iresnet.changes import (
    ANOTHER_RUN,
    BETWEEN_EPOCHS,
    FITS,
    OTHER_CLIPS,
    OTHER_NETWORK,
    TAKES_EFFECT,
    check_going_on,
    check_testing,
)
from video_iresnet.config import default_config, leaves, load_config, parse_config
from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import Record
from video_iresnet.engine.checkpoint import list_checkpoints, load_checkpoint
from video_iresnet.models import read_weights
from video_iresnet.runtime.logging import Stats
from video_iresnet.runtime.storage import exclusive


def test_a_second_run_in_a_folder_is_refused(
    small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it would train or test; what the first one left unfinished stays."""
    (tmp_path / ".results.json.aaaaaaaa.partial").touch()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for enable in ("TRAIN.ENABLE", "TEST.ENABLE"):
            assert run_net(*small, "OUTPUT_DIR", str(tmp_path), enable, "False") == 1
            expected = rf"error: {tmp_path} is in use by process {holder.pid} on [^\n]*; wait [^\n]*\n"
            assert re.fullmatch(expected, capsys.readouterr().err)
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".results.json.aaaaaaaa.partial"}
        holder.kill()


@pytest.mark.slow
def test_a_second_run_of_two_processes_is_refused(small: list[str], tmp_path: Path) -> None:
    """None of its processes waits for the others."""
    with exclusive(tmp_path):
        command = ["tools/run_net.py", "--cfg", DEMO, *small, "OUTPUT_DIR", str(tmp_path)]
        processes = start_together(2, *command)
        output = "".join(process.communicate(timeout=120)[0] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert output.count(f"error: {tmp_path} is in use by process") == 1


def test_a_folder_is_held_from_training_to_testing(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And freed after each config, so that the next one may use it."""
    events: list[str] = []

    @contextmanager
    def noted(folder: Path) -> Iterator[None]:
        events.append("hold")
        with exclusive(folder):
            yield
        events.append("free")

    monkeypatch.setattr(folder, "exclusive", noted)
    monkeypatch.setattr(run, "train", lambda *_: events.append("train"))
    monkeypatch.setattr(run, "test", lambda *_: events.append("test"))
    assert run_net(DEMO, *small, "OUTPUT_DIR", str(tmp_path)) == 0
    assert events == ["hold", "train", "test", "free"] * 2


def test_what_killed_runs_left_unfinished_is_removed(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test"):
        monkeypatch.setattr(run, name, lambda *_: None)
    (tmp_path / "checkpoints").mkdir()
    leftovers = [
        "checkpoints/.checkpoint_epoch_00001_step_000003.pyth.x1b2_3d4.partial",
        "checkpoints/.checkpoint_best.pyth.aaaaaaaa.partial",
        ".results.json.aaaaaaaa.partial",
        ".predictions.csv.aaaaaaaa.partial",
        ".config.yaml.aaaaaaaa.partial",
    ]
    others = [".video.mp4.aaaaaaaa.partial", "checkpoints/mine.partial"]
    for name in leftovers + others:
        (tmp_path / name).touch()
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path)) == 0
    assert not any((tmp_path / name).exists() for name in leftovers)
    assert all((tmp_path / name).exists() for name in others)


def test_an_output_folder_has_a_name(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_net(*small, "OUTPUT_DIR", "") == 1
    assert re.fullmatch(r"error: OUTPUT_DIR is empty; name the folder [^\n]*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def run_of(small: list[str], folder: Path) -> list[str]:
    """Overrides of a run in `folder` of two epochs of six steps."""
    return [*small, "TRAIN.BATCH_SIZE", "4", "TEST.ENABLE", "False", "OUTPUT_DIR", str(folder)]


@pytest.fixture(scope="module")
def whole(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert load_script("tools/run_net.py").main(["--cfg", DEMO, *run_of(small, folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def stopped_run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 4 of 6 of its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    write = Stats.write

    def stop_there(stats: Stats, line: dict[str, object], step: int) -> None:
        write(stats, line, step)
        if (line.get("epoch"), line.get("iter")) == ("2/2", "3/6"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stats, "write", stop_there)
        assert load_script("tools/run_net.py").main(["--cfg", DEMO, *run_of(small, folder)]) == 130
    names = [path.name for path in list_checkpoints(folder / "checkpoints")]
    assert names == ["checkpoint_epoch_00001.pyth", "checkpoint_epoch_00001_step_000004.pyth"]
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def latest(folder: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


def same_weights(a: Path, b: Path) -> bool:
    ours, theirs = latest(a)["model_state"], latest(b)["model_state"]
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def contents_of(folder: Path) -> dict[str, bytes]:
    """What a refused run must leave as it is."""
    return {path.name: path.read_bytes() for path in [folder / "config.yaml", *folder.glob("checkpoints/*")]}


def test_every_key_is_classified_once() -> None:
    keys = [key for key, _ in leaves(default_config())]
    classified = [*FITS, *TAKES_EFFECT, *BETWEEN_EPOCHS, *ANOTHER_RUN]
    assert sorted(classified) == sorted(keys)
    assert set(OTHER_NETWORK) <= set(ANOTHER_RUN)
    assert set(OTHER_CLIPS) <= {*ANOTHER_RUN, *TAKES_EFFECT}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_config_in_a_checkpoint_is_the_config(path: Path) -> None:
    """Whatever YAML makes of its numbers and lists."""
    overrides = "SOLVER.WEIGHT_DECAY 1e-5 SOLVER.COSINE_END_LR 1e-9 DATA.MEAN (0,0.5,1)"
    cfg = load_config(str(path), overrides.split())
    assert parse_config(cfg.dump()) == cfg
    tree = yaml.safe_load(cfg.dump())
    del tree["MIXUP"], tree["RESNET"]["STEM_POOL"]
    tree["GONE"] = {"KEY": 1}
    default = default_config()
    cfg.MIXUP, cfg.RESNET.STEM_POOL = default.MIXUP, default.RESNET.STEM_POOL
    assert parse_config(yaml.safe_dump(tree)) == cfg


def test_a_list_is_known_by_its_videos() -> None:
    def fingerprint(*names: str, labels: tuple[int, ...] = (0, 1, 2), root: str = "/data") -> str:
        pairs = zip(names, labels, strict=True)
        return PackedRecords(Record(name, f"{root}/{name}", label) for name, label in pairs).fingerprint()

    names = ("a/1.mp4", "a/2.mp4", "b/1.mp4")
    first = fingerprint(*names)
    assert first.startswith("3 records")
    assert fingerprint(*names, root="/elsewhere") == first
    assert fingerprint(*(f"/moved/here/{name}" for name in names)) == first
    others = [
        fingerprint("a/2.mp4", "a/1.mp4", "b/1.mp4"),
        fingerprint("a/1.mp4", "a/2.mp4", "c/1.mp4"),
        fingerprint(*names, labels=(0, 1, 3)),
        fingerprint("a/1.mp4", "a/2.mp4", labels=(0, 1)),
    ]
    assert len({first, *others}) == 5


def test_a_run_of_an_older_version_goes_on(
    stopped: Path, whole: Path, small: list[str], run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints have the position at the top, no fingerprint, and lack keys that were added since."""
    path = list_checkpoints(stopped / "checkpoints")[-1]
    state = load_checkpoint(path)
    state |= {**state.pop("position"), "epoch": state["epoch"]}
    del state["train_list"]
    tree = yaml.safe_load(state["cfg"])
    del tree["MIXUP"], tree["DATA"]["TARGET_FPS"]
    tree["DATA"]["MAX_BAD_SHARE"] = tree["DATA"].pop("MAX_BAD_FRACTION")
    state["cfg"] = yaml.safe_dump(tree)
    torch.save(state, path)
    assert run_net(*run_of(small, stopped)) == 0
    output = capsys.readouterr().out
    assert "after 1 epochs and 4 steps" in output
    assert "changed from here on" not in output
    assert same_weights(stopped, whole)
    assert latest(stopped)["position"] == latest(whole)["position"]


def test_a_shorter_list_shows_without_a_fingerprint(
    stopped: Path,
    shapes: Path,
    tmp_path: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = list_checkpoints(stopped / "checkpoints")[-1]
    state = load_checkpoint(path)
    del state["train_list"]
    torch.save(state, path)
    lines = (shapes / "train.csv").read_text().splitlines()[:12]
    (tmp_path / "list.csv").write_text("".join(f"{shapes}/{line}\n" for line in lines))
    before = contents_of(stopped)
    assert run_net(*run_of(small, stopped), "DATA.TRAIN_LIST", str(tmp_path / "list.csv")) == 1
    assert "is after step 4 of an epoch, but an epoch now has 3 steps" in capsys.readouterr().err
    assert contents_of(stopped) == before


def test_a_moved_run_goes_on(
    stopped: Path,
    whole: Path,
    shapes: Path,
    tmp_path: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Under other paths, with a list of absolute ones, other workers and another pace of logs."""
    data = tmp_path / "moved"
    shutil.copytree(shapes, data)
    lines = (data / "train.csv").read_text().splitlines()
    (data / "list.csv").write_text("".join(f"{data}/{line}\n" for line in lines))
    moved = ["DATA.PATH_TO_DATA_DIR", str(data), "DATA.TRAIN_LIST", "list.csv", "LOG_PERIOD", "4"]
    more = [*moved, "DATA_LOADER.NUM_WORKERS", "1", "TRAIN.CHECKPOINTS_KEPT", "1", "TEST.BATCH_SIZE", "3"]
    assert run_net(*run_of(small, stopped), *more) == 0
    assert "changed from here on" not in capsys.readouterr().out
    assert same_weights(stopped, whole)


OTHER_RUNS = {
    "RNG_SEED 1": "RNG_SEED was 0 and is 1",
    "DATA.SAMPLING_RATE 3 DATA.TARGET_FPS 25": (
        r"DATA.SAMPLING_RATE was 2 and is 3, DATA.TARGET_FPS was 0\.0 and is 25\.0"
    ),
    "RESNET.RECTIFY_IDENTITY False": "RESNET.RECTIFY_IDENTITY was True and is False",
    "RESNET.WIDTH_PER_GROUP 8": "RESNET.WIDTH_PER_GROUP was 4 and is 8",
    "DATA.MEAN [0.5,0.45,0.45]": r"DATA.MEAN was \[0.45, 0.45, 0.45\] and is \[0.5, 0.45, 0.45\]",
    "MIXUP.ENABLE True": "MIXUP.ENABLE was False and is True",
    "TRAIN.CHECKPOINT_FILE_PATH WEIGHTS": r"TRAIN.CHECKPOINT_FILE_PATH was '' and is '\S+/weights.pyth'",
    "TRAIN.BATCH_SIZE 8": "TRAIN.BATCH_SIZE was 4 and is 8, which can change only between two epochs",
    "DATA.TRAIN_LIST SHORTER": "DATA.TRAIN_LIST was '24 records .*' and is '23 records .*', which can",
    "DATA.TRAIN_LIST TURNED": "DATA.TRAIN_LIST was '24 records .*' and is '24 records .*', which can change",
    "DATA.CLASS_NAMES NAMES": "DATA.CLASS_NAMES was '.*' at place 2 and is 'other' at place 2",
}


@pytest.mark.parametrize("overrides", OTHER_RUNS)
def test_another_run_is_refused(
    overrides: str,
    stopped: Path,
    shapes: Path,
    tmp_path: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line, before anything is written."""
    lines = [f"{shapes}/{line}\n" for line in (shapes / "train.csv").read_text().splitlines()]
    names = (shapes / "classes.txt").read_text().splitlines()
    files = {
        "SHORTER": lines[:-1],
        "TURNED": lines[::-1],
        "NAMES": [f"{name}\n" for name in (*names[:2], "other", *names[3:])],
    }
    for name, texts in files.items():
        (tmp_path / name).write_text("".join(texts))
    shutil.copy(list_checkpoints(stopped / "checkpoints")[0], tmp_path / "weights.pyth")
    files["WEIGHTS"] = []
    words = [
        str(tmp_path / word.replace("WEIGHTS", "weights.pyth")) if word in files else word
        for word in overrides.split()
    ]
    before = contents_of(stopped)
    assert run_net(*run_of(small, stopped), *words) == 1
    error = capsys.readouterr().err
    expected = f"error: cannot resume from [^\n]*_step_000004.pyth: {OTHER_RUNS[overrides]}"
    assert re.fullmatch(f"{expected}[^\n]*; restore it, [^\n]*\n", error), error
    assert contents_of(stopped) == before


def test_changes_that_take_effect(
    stopped: Path, whole: Path, small: list[str], run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the optimizer too, whose state holds the old values."""
    text = "SOLVER.WEIGHT_DECAY 0.5 BN.WEIGHT_DECAY 0.25 SOLVER.MOMENTUM 0.5 SOLVER.NESTEROV False"
    assert run_net(*run_of(small, stopped), *text.split()) == 0
    effects = [line for line in capsys.readouterr().out.splitlines() if "changed from here on" in line]
    assert len(effects) == 1
    assert effects[0].endswith(
        "SOLVER.MOMENTUM was 0.9 and is 0.5, SOLVER.NESTEROV was True and is False, "
        "SOLVER.WEIGHT_DECAY was 0.0001 and is 0.5"
    )
    assert "BN.WEIGHT_DECAY was 0.0 and is 0.25" in effects[0]
    groups = latest(stopped)["optimizer_state"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.25]
    assert [(group["momentum"], group["nesterov"]) for group in groups] == [(0.5, False)] * 2
    assert not same_weights(stopped, whole)
    assert yaml.safe_load((stopped / "config.yaml").read_text())["SOLVER"]["WEIGHT_DECAY"] == 0.5


def test_batch_size_and_list_change_between_epochs(
    stopped: Path,
    shapes: Path,
    tmp_path: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    list_checkpoints(stopped / "checkpoints")[-1].unlink()
    lines = (shapes / "train.csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("".join(f"{shapes}/{line}\n" for line in lines[:16]))
    more = ["TRAIN.BATCH_SIZE", "8", "DATA.TRAIN_LIST", str(tmp_path / "list.csv")]
    assert run_net(*run_of(small, stopped), *more) == 0
    output = capsys.readouterr().out
    assert "changed from here on: TRAIN.BATCH_SIZE was 4 and is 8, DATA.TRAIN_LIST was '24 rec" in output
    assert "2 epochs of 2 steps of 8 clips" in output
    assert latest(stopped)["train_list"].startswith("16 records")


def test_a_finished_run_says_what_has_no_effect(
    whole: Path, small: list[str], run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents_of(whole)
    assert run_net(*run_of(small, whole), "SOLVER.WEIGHT_DECAY", "0.5") == 0
    assert "(without effect: SOLVER.WEIGHT_DECAY was 0.0001 and is 0.5)" in capsys.readouterr().out
    assert contents_of(whole) == before


def test_class_names_are_read_once(
    shapes: Path, tmp_path: Path, small: list[str], run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that is edited during a run does not keep it from saving."""
    names = tmp_path / "classes.txt"
    shutil.copy(shapes / "classes.txt", names)
    write = Stats.write

    def edit_and_write(stats: Stats, line: dict[str, object], step: int) -> None:
        names.write_text("one\n")
        write(stats, line, step)

    monkeypatch.setattr(Stats, "write", edit_and_write)
    once = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA.CLASS_NAMES", str(names)]
    assert run_net(*run_of(small, tmp_path / "run"), *once) == 0
    assert latest(tmp_path / "run")["class_names"] == (shapes / "classes.txt").read_text().split("\n")[:-1]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other keys"])
def test_a_damaged_checkpoint_names_an_intact_one(
    damage: str,
    stopped: Path,
    whole: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, last = list_checkpoints(stopped / "checkpoints")
    state = load_checkpoint(last)
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-1000])
    elif damage == "flipped":
        flip_a_bit(last)
    else:  # what PySlowFast's own checkpoints have, whose names are alike
        torch.save({key: state[key] for key in ("epoch", "model_state", "optimizer_state", "cfg")}, last)
    assert run_net(*run_of(small, stopped)) == 1
    expected = rf"error: [^\n]*{last}[^\n]*; {first} is intact: move {last.name} away to resume from it\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    if damage != "other keys":
        assert run_net(*run_of(small, stopped), "TRAIN.ENABLE", "False", "TEST.ENABLE", "True") == 1
        expected = rf"error: [^\n]*; {first} is intact: name it with TEST.CHECKPOINT_FILE_PATH\n"
        assert re.fullmatch(expected, capsys.readouterr().err)
    first.write_bytes(first.read_bytes()[:-1000])
    assert run_net(*run_of(small, stopped)) == 1
    assert "; no older checkpoint is intact: name another OUTPUT_DIR" in capsys.readouterr().err


@pytest.mark.parametrize("state", [{}, {"state": {}, "param_groups": []}])
def test_an_optimizer_of_something_else_is_one_line(
    state: dict[str, object],
    stopped: Path,
    small: list[str],
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = list_checkpoints(stopped / "checkpoints")[-1]
    torch.save(load_checkpoint(path) | {"optimizer_state": state}, path)
    assert run_net(*run_of(small, stopped)) == 1
    assert re.fullmatch(
        r"error: the optimizer's state does not fit [^\n]*; name another OUTPUT_DIR[^\n]*\n",
        capsys.readouterr().err,
    )


def test_files_of_weights_may_move() -> None:
    """To start from; and windows of the head depend on the crop of the training."""
    cfg = load_config(DEMO, ["TRAIN.CHECKPOINT_FILE_PATH", "/here/w.pth"])
    contents = {"train_list": "", "class_names": []}
    state = {"cfg": cfg.dump(), "position": {"step": 0}, **contents}
    cfg.TRAIN.CHECKPOINT_FILE_PATH = "/there/w.pth"
    assert check_going_on(cfg, state, contents, "a.pyth") == ""
    cfg.DATA.TRAIN_CROP_SIZE = 40
    assert check_testing(cfg, state["cfg"], "a.pyth") == ""
    cfg.MODEL.HEAD_PER_POSITION = True
    assert check_testing(cfg, state["cfg"], "a.pyth") == (
        "DATA.TRAIN_CROP_SIZE was 48 and is 40, MODEL.HEAD_PER_POSITION was False and is True"
    )


def weights_of(small: list[str], whole: Path, folder: Path) -> list[str]:
    """Overrides of a test of the undisturbed run's weights."""
    weights = list_checkpoints(whole / "checkpoints")[-1]
    return [
        *small, "TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(weights), "OUTPUT_DIR", str(folder),
        "DATA.NUM_FRAMES", "4",
    ]  # fmt: skip


def test_a_test_alone_asks_for_no_training_key(
    whole: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose values need not even fit each other; and the log counts whole epochs."""
    training = "SOLVER.WARMUP_EPOCHS 9 TRAIN.BATCH_SIZE 3 AUG.NUM_SAMPLE 2 DATA.TRAIN_JITTER_SCALES [9,9]"
    assert run_net(*weights_of(small, whole, tmp_path), *training.split()) == 0
    output = capsys.readouterr().out
    assert re.search(r"testing \S*checkpoint_epoch_00002.pyth \([^)]*\) after 2 epochs on 11 videos", output)
    assert "than the training" not in output
    assert run_net(*small, *training.split(), "OUTPUT_DIR", str(tmp_path)) == 1


@pytest.mark.parametrize(("key", "value"), [("DATA.MEAN", "[0.5,0.45,0.45]"), ("DATA.STD", "[1,1,1]")])
def test_a_test_with_another_normalization_is_refused(
    key: str,
    value: str,
    whole: Path,
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_net(*weights_of(small, whole, tmp_path), key, value) == 1
    expected = rf"error: [^\n]* was trained with {key} \[[^\n]*\], but it is \[[^\n]*\]; set it to \[[^\n]*\n"
    assert re.fullmatch(expected, capsys.readouterr().err)
    assert not (tmp_path / "config.yaml").exists()


def test_a_test_of_other_clips_is_warned_of(
    whole: Path, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "DATA.NUM_FRAMES 6 DATA.SAMPLER slowfast DATA.TARGET_FPS 25 MODEL.HEAD_PER_POSITION True"
    assert run_net(*weights_of(small, whole, tmp_path), *other.split()) == 0
    assert re.search(
        r"WARNING\].* testing uses other clips than the training of \S*checkpoint_epoch_00002.pyth: "
        r"DATA.SAMPLER was 'dense' and is 'slowfast', DATA.NUM_FRAMES was 4 and is 6, DATA.TARGET_FPS was "
        r"0.0 and is 25.0, MODEL.HEAD_PER_POSITION was False and is True\n",
        capsys.readouterr().out,
    )


def test_exporting_leaves_out_what_is_no_text(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a second set of tensors."""
    state = latest(whole)
    torch.save(state | {"ema": {"weights": {"w": torch.ones(2)}}}, tmp_path / "a.pyth")
    export = load_script("tools/export.py").main
    out = tmp_path / "a.safetensors"
    assert export(["--checkpoint", str(tmp_path / "a.pyth"), "--out", str(out)]) == 0
    assert "tensors, 8 class names; left out: ema\n" in capsys.readouterr().out
    assert read_weights(out).info["train_list"] == state["train_list"]
