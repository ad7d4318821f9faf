"""What a checkpoint says of videos: whole, in windows, as frames; on the terminal, in files, in a video."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VARIABLE, RunNet, load_script, numbered_frame, write_video

from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.engine.checkpoint import export_safetensors
from video_iresnet.inference import Classifier, FrameTensor, Guess, Prediction, load, read_trained
from video_iresnet.inference.annotate import annotated, draw_panel, lettering, panel
from video_iresnet.inference.predictor import frame_times, frame_windows
from video_iresnet.models import WeightsError
from video_iresnet.runtime.errors import InputError


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    assert run_net(*small, "OUTPUT_DIR", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path) -> Classifier:
    return load(run)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Three seconds of 25 frames per second."""
    return write_video(tmp_path / "video.mp4", 75)


def predict(*arguments: object) -> int:
    return int(load_script("tools/predict.py").main([str(word) for word in arguments]))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_agrees_with_the_test_of_the_run(run: Path, classifier: Classifier, shapes: Path) -> None:
    tested = rows(run / "predictions.csv")
    assert len(tested) == 11
    for row, prediction in zip(tested, classifier([shapes / row["video"] for row in tested]), strict=True):
        guesses = prediction.top(5)
        assert [str(guess.label) for guess in guesses] == [row[f"top{i}"] for i in range(1, 6)]
        assert [f"{guess.probability:.6f}" for guess in guesses] == [row[f"prob{i}"] for i in range(1, 6)]
        assert [guess.name for guess in guesses] == [
            (shapes / "classes.txt").read_text().splitlines()[guess.label] for guess in guesses
        ]


def test_frames_are_a_video_too(classifier: Classifier, video: Path) -> None:
    with PyAVReader(str(video)) as reader:
        frames = reader.read(range(len(reader)))
    from_file, from_frames = classifier(video), classifier(frames, fps=25)
    assert np.array_equal(from_file.probabilities, from_frames.probabilities)
    assert (from_frames.begin, from_frames.end) == pytest.approx((0, 3))
    assert from_file.probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("frames", "fps", "expected"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 25, r"\(4, 3, 8, 8\).* expected \(N, H, W, 3\)"),
        (torch.zeros(4, 8, 8, 3), 25, "torch.float32; expected"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), 25, "expected"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), 0, "frame rate is 0; expected"),
    ],
)
def test_wrong_frames(frames: torch.Tensor, fps: float, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        FrameTensor(frames, fps)


@pytest.mark.parametrize(
    ("seconds", "step", "expected"),
    [
        (1, 1, [(0, 25), (25, 50), (50, 75)]),
        (2, 2, [(0, 50), (25, 75)]),
        (2, 0.4, [(0, 50), (10, 60), (20, 70), (25, 75)]),
        (0.04, 1, [(0, 1), (25, 26), (50, 51), (74, 75)]),
        (3, 1, [(0, 75)]),
        (9, 1, [(0, 75)]),
    ],
)
def test_windows(seconds: float, step: float, expected: list[tuple[int, int]]) -> None:
    assert list(frame_windows([i / 25 for i in range(76)], seconds, step)) == expected


def test_windows_of_a_variable_rate() -> None:
    """By time; where nothing is shown within a window, it is the next frame."""
    times = [time / 1000 for time in VARIABLE] + [1.4]
    windows = list(frame_windows(times, 0.1, 0.1))
    assert len(windows) == 14
    assert windows[0] == (0, 3)  # 0, 40 and 50 ms
    assert windows[2] == (5, 6)  # 200 ms: nothing before 300
    assert windows[5] == (9, 11)  # 500 and 501 ms
    assert list(frame_windows([0, 1, 1.04], 0.5, 0.5)) == [(0, 1), (1, 2), (1, 2)]


@pytest.mark.parametrize(("seconds", "step"), [(0, 1), (1, -1), (float("nan"), 1)])
def test_wrong_windows(seconds: float, step: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        list(frame_windows([0.0, 1.0], seconds, step))


def test_a_window_sees_its_own_frames(classifier: Classifier, video: Path) -> None:
    with PyAVReader(str(video)) as reader:
        frames = reader.read(range(len(reader)))
    windows = list(classifier.windows(video, 1))
    assert [(window.begin, window.end) for window in windows] == [(0, 1), (1, 2), (2, 3)]
    centred = Classifier(classifier.trained, clips=1)
    for number, window in enumerate(windows):
        alone = centred(frames[25 * number : 25 * number + 25], fps=25)
        assert np.array_equal(window.probabilities, alone.probabilities)
    assert not np.array_equal(windows[0].probabilities, windows[1].probabilities)


def test_views_by_choice(run: Path, video: Path) -> None:
    assert load(run, clips=5, crops=1).whole.protocol == "5x1 @32"
    assert load(run, clips=5).part.protocol == "5x3 @32"
    with pytest.raises(InputError, match="NUM_SPATIAL_CROPS is 2; expected one of 1, 3"):
        load(run, crops=2)


def test_a_file_with_weights_alone_is_enough(
    run: Path, classifier: Classifier, video: Path, tmp_path: Path
) -> None:
    """A checkpoint or its export, anywhere."""
    moved = tmp_path / "moved.pyth"
    shutil.copy(classifier.trained.path, moved)
    exported = tmp_path / "exported.safetensors"
    export_safetensors(moved, exported)
    expected = classifier(video)
    for path in (moved, exported):
        prediction = load(path)(video)
        assert np.array_equal(prediction.probabilities, expected.probabilities)
        assert prediction.class_names == expected.class_names
        assert str(read_trained(path)) == "iresnet-18 after 2 epochs, 8 classes, clips of 4x2 @32"


def changed(run: Path, tmp_path: Path, **contents: Any) -> Path:
    """A copy of a run's checkpoint with other contents."""
    state = torch.load(read_trained(run).path, weights_only=True)
    path = tmp_path / "changed.pyth"
    torch.save(state | contents, path)
    return path


def test_without_class_names_classes_have_numbers(run: Path, tmp_path: Path, video: Path) -> None:
    (best, *_) = load(changed(run, tmp_path, class_names=[]))(video).top()
    assert best.name == str(best.label)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"cfg": "TRAIN: {}"}, "holds no config of a training of this project"),
        ({"cfg": None}, "holds no config"),
        ({"class_names": ["a", "b"]}, "names 2 classes, but its network has 8"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours(
    run: Path, tmp_path: Path, contents: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        load(changed(run, tmp_path, **contents))


def test_impossible_numbers_in_a_checkpoint(run: Path, tmp_path: Path) -> None:
    text = torch.load(read_trained(run).path, weights_only=True)["cfg"]
    huge = changed(run, tmp_path, cfg=text.replace("NUM_FRAMES: 4", "NUM_FRAMES: 400000000"))
    with pytest.raises(InputError, match=r"changed.pyth cannot be used: DATA.NUM_FRAMES is 400000000"):
        load(huge)


def test_no_checkpoint(tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="holds no checkpoints; name the OUTPUT_DIR"):
        load(tmp_path)
    with pytest.raises(WeightsError, match=r"gone.pyth"):
        load(tmp_path / "gone.pyth")
    assert predict("--checkpoint", video, video) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_with_broken_files(
    run: Path, classifier: Classifier, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    good = write_video(folder / "deep/good.mp4", 30)
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:4000])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no video either")
    out = tmp_path / "out.csv", tmp_path / "out.json"
    words = (
        "--checkpoint",
        run,
        video,
        folder,
        tmp_path / "gone.mp4",
        "--top",
        2,
        "--csv",
        out[0],
        "--json",
        out[1],
    )
    assert predict(*words) == 1
    printed = capsys.readouterr()
    assert "4 of 6 videos could not be read:\n" in printed.err
    reasons = printed.err.split("could not be read:\n")[1].splitlines()
    for reason, name in zip(reasons, ("cut.mp4", "empty.mp4", "text.mp4", "gone.mp4"), strict=True):
        assert name in reason
    best, second = classifier(good).top(2)
    assert f"{good}\n  0:00.0 - 0:01.2  {best.probability:7.2%}  {best.name}\n" in printed.out
    table = rows(out[0])
    assert [row["video"] for row in table] == [
        str(path) for path in (video, folder / "cut.mp4", good, folder / "empty.mp4", folder / "text.mp4",
                               tmp_path / "gone.mp4")
    ]  # fmt: skip
    assert [bool(row["error"]) for row in table] == [False, True, False, True, True, True]
    assert table[2] == {
        "video": str(good), "begin": "0.000", "end": "1.200", "top1": best.name, "top2": second.name,
        "prob1": f"{best.probability:.6f}", "prob2": f"{second.probability:.6f}", "error": "",
    }  # fmt: skip
    found = json.loads(out[1].read_text())
    assert found["protocol"] == "2x3 @32"
    assert found["videos"][2]["predictions"][0]["top"][0] == best._asdict()
    assert found["videos"][1] == {
        "video": str(folder / "cut.mp4"),
        "error": table[1]["error"],
        "predictions": [],
    }


def test_ctrl_c_keeps_what_was_classified(
    run: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load_script("tools/predict.py")
    classify = script.classified

    def interrupted(classifier: Classifier, path: str, *options: float | None) -> Iterator[Prediction]:
        yield from classify(classifier, path, *options)
        if path != str(video):
            raise KeyboardInterrupt

    monkeypatch.setattr(script, "classified", interrupted)
    second = write_video(tmp_path / "second.mp4", 30)
    words = ["--checkpoint", run, video, second, video, "--csv", tmp_path / "out.csv"]
    assert script.main([str(word) for word in words]) == 130
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "stopped; --csv and --json, if given, hold what was classified so far"
    assert [row["video"] for row in rows(tmp_path / "out.csv")] == [str(video), str(second)]


def test_windows_on_the_terminal(run: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        predict("--checkpoint", run, video, "--window", 2, "--step", 0.5, "--top", 1, "--device", "cpu") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(video)
    assert [line[2:17] for line in lines[1:]] == ["0:00.0 - 0:02.0", "0:00.5 - 0:02.5", "0:01.0 - 0:03.0"]


def test_an_annotated_video(run: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "shown.mp4"
    assert predict("--checkpoint", run, video, "--window", 1, "--annotate", out) == 0
    with PyAVReader(str(video)) as before, PyAVReader(str(out)) as after:
        assert before.seconds == after.seconds
        old, new = before.read([40])[0].float(), after.read([40])[0].float()
    changed_pixels = (old - new).abs().mean(-1) > 30
    assert changed_pixels[4:20, 4:30].float().mean() > 0.5
    assert changed_pixels[-8:].float().mean() < 0.05


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--annotate", "{video}"], "exists; name a file that does not"),
        (["--annotate", "a.avi"], "does not end with .mp4"),
        (["--csv", "{video}"], "does not end with .csv"),
        (["--json", "{video}"], "does not end with .json"),
        (["--step", "1"], "--step 1.0 needs --window"),
        (["{video}", "--annotate", "a.mp4"], "--annotate takes one video, not 2"),
        (["{empty}"], "holds no videos"),
    ],
)
def test_wrong_options(
    words: list[str],
    expected: str,
    run: Path,
    video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = video.read_bytes()
    (tmp_path / "empty").mkdir()
    words = [word.format(video=video, empty=tmp_path / "empty") for word in words]
    assert predict("--checkpoint", run, video, *words) == 1
    assert expected in capsys.readouterr().err
    assert video.read_bytes() == before


def test_logits_that_are_not_finite(run: Path, tmp_path: Path, video: Path) -> None:
    """Such weights are refused; such pictures cannot be, so the network is made to overflow."""
    trained = read_trained(run)
    with torch.no_grad():
        trained.network.fc.weight.fill_(3e38)
    with pytest.raises(DecodeError, match="not finite"):
        Classifier(trained)(video)


GUESSES = [Guess(0, "a", 0.5), Guess(1, "b" * 300, 0.25), Guess(2, "line\nbreak \u202e", 0.0)]


def test_a_panel_fits_its_picture() -> None:
    """Bars are as long as the probabilities; long names are cut, and unprintable ones escaped."""
    drawn = panel(GUESSES, 240, 320)
    assert drawn.shape[1] <= 320 - 12
    assert drawn.shape[0] < 240 / 3
    bars = (drawn == (52, 101, 164)).all(-1)
    rows_of_bars = bars.sum(1)[bars.any(1)]
    assert rows_of_bars.max() == pytest.approx(0.5 * drawn.shape[1], abs=2)
    assert (drawn == 255).all(-1).any()
    assert panel(GUESSES, 32, 32).shape[1] <= 32
    assert lettering(20).getlength("ж") != lettering(20).getlength("\uffff")


def test_a_panel_covers_its_place_alone() -> None:
    picture = np.full((100, 200, 3), 200, np.uint8)
    drawn = draw_panel(picture, panel(GUESSES[:1], 100, 200))
    assert (picture == 200).all()
    assert (drawn[60:] == 200).all()
    assert (drawn[5, 5] < 190).all()


def test_each_time_shows_its_window(tmp_path: Path) -> None:
    """The one whose middle is nearest."""
    frames = np.stack([numbered_frame(0, (48, 64))] * 40)
    predictions = [
        Prediction(begin, begin + 2, np.array([1.0 - i / 4, i / 4]), ["a", "b"])
        for i, begin in enumerate((0.0, 1.0, 2.0))
    ]
    reader = FrameTensor(torch.from_numpy(frames), 10)
    pictures = [picture for _, picture in annotated(reader, frame_times(reader), predictions, 1)]
    changes = [i for i in range(1, 40) if not np.array_equal(pictures[i - 1], pictures[i])]
    assert changes == [15, 25]
