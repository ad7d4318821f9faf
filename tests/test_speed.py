"""Benchmarks of models and whole runs at small size, and the check of a run before it starts."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import DEMO, RunNet, load_script, start
from PIL import Image
from torch import nn

from video_iresnet import build
from video_iresnet import check as check_module
from video_iresnet.check import check
from video_iresnet.config import load_config
from video_iresnet.engine.complexity import complexity
from video_iresnet.models import ResNet
from video_iresnet.runtime.distributed import Processes
from video_iresnet.speed import model, timing, whole

CPU = torch.device("cpu")


def rows_of(output: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def test_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(name: str, seconds: list[float]) -> None:
        order.append(name)
        now[0] += seconds.pop(0)

    a, b = [9.0, 1.0, 5.0, 2.0], [9.0, 4.0, 4.0, 4.0]  # the first of each is a warm-up
    costs = timing.measure({"a": lambda: lambda: call("a", a), "b": lambda: lambda: call("b", b)}, CPU, 3)
    assert order == ["a", "b"] * 4
    assert {name: cost.seconds for name, cost in costs.items()} == {"a": 2.0, "b": 4.0}


FAULTS = """
import resource, torch
from video_iresnet.runtime.devices import prepare
prepare(torch.device("cpu"), tf32=True, local_processes=1)
faults = []
for _ in range(10):
    tensors = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each
    del tensors
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-4])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_of_tensors_is_not_taken_from_the_system_again() -> None:
    """By itself, glibc gives these 64 MiB back and takes their 16,384 pages again each time."""
    assert int(start("-c", FAULTS).communicate()[0]) < 1000


def test_the_peak_counts_two_operations_for_a_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_in_turns", lambda *_: {"product": timing.Cost(0.5, 0)})
    assert timing.peak(CPU, torch.float32) == 2 * 2048**3 / 0.5


def test_training_ways_are_the_same_step(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way computes the gradient of the same network; only its precision and layout differ."""
    cfg = load_config(DEMO, small)
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    ways = model.training_ways(cfg, 2, Processes(use_gpu=False), half=True, compiled=True)
    first, *steps, last = ways
    assert (first, last) == ("ordinary loop, float32", "torchvision's r3d_18, ordinary loop")
    assert steps == [
        "this step, eager, float32", "+ bfloat16", "+ channels_last_3d", "+ compile",
        "float32, channels_last_3d", "float32, channels_last_3d, compile",
    ]  # fmt: skip
    assert [way.half for way in ways.values()] == [False, False, True, True, True, False, False, False]
    with torch.device("meta"):
        work = 3 * 2 * complexity(build.build_model(cfg), (4, 32, 32)).multiply_adds
    assert {way.operations for way in [*ways.values()][:-1]} == {work}
    losses = []
    for name in ("ordinary loop, float32", "float32, channels_last_3d"):
        torch.manual_seed(0)
        outcome = ways[name].make()()
        losses.append(outcome if isinstance(outcome, float) else float(outcome.sums[0]) / 2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    few = model.training_ways(cfg, 2, Processes(use_gpu=False), half=False, compiled=False)
    assert list(few) == [*list(ways)[:2], "float32, channels_last_3d", list(ways)[-1]]


def test_testing_ways_give_the_same_logits(small: list[str]) -> None:
    cfg = load_config(DEMO, small)
    ways = model.testing_ways(cfg, 2, Processes(use_gpu=False), half=False, compiled=False)
    assert list(ways) == ["float32, contiguous", "float32", "float32, folded"]
    logits = []
    for way in ways.values():
        torch.manual_seed(0)
        logits.append(way.make()())
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-3, atol=1e-4)


def test_benchmark_of_a_model(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load_script("tools/benchmark.py")
    monkeypatch.setattr(benchmark, "supports", lambda *_: False)
    monkeypatch.setattr(model, "r3d_18", lambda cfg: build.build_model(cfg))
    out = tmp_path / "model.json"
    arguments = ["model", "--cfg", DEMO, "--clips", "2,3", "--repeats", "1", "--out", str(out), *small]
    assert benchmark.main(arguments) == 0
    output = capsys.readouterr().out
    assert re.match(r"\d{4}-\d\d-\d\d, .* cores, PyTorch .*:\npython tools/benchmark.py model --cfg", output)
    contents = json.loads(out.read_text())
    assert contents["command"].startswith("python tools/benchmark.py model --cfg")
    training, testing = contents["tables"]
    assert [row[1] for row in training["rows"]] == [2] * 4 + [3] * 4
    assert [row[0] for row in testing["rows"][:3]] == ["float32, contiguous", "float32", "float32, folded"]
    first = float(training["rows"][0][2])
    for row in training["rows"][:4]:
        assert float(row[3]) == pytest.approx(float(row[2]) / first, abs=0.02)
    assert benchmark.main(["model", "--cfg", DEMO, "--clips", "0", *small]) == 1
    assert capsys.readouterr().err == "error: --clips is 0; expected 1 or more\n"


def test_benchmarks_of_whole_runs(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load_script("tools/benchmark.py")
    assert benchmark.main(["train", "--cfg", DEMO, "--steps", "2", *small]) == 0
    output = capsys.readouterr().out
    assert re.search(r"8 at a time, 0 workers; waiting for data: \d+ % of the time", output)
    rows = rows_of(output)
    assert all(float(rows[name][0]) > 0 for name in ("loading alone", "the step alone", "both"))
    assert benchmark.main(["test", "--cfg", DEMO, *small]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["here"][1]) == pytest.approx(
        float(rows["here"][0]) / float(rows["one view at a time"][0]), abs=0.1
    )


def test_waiting_is_the_time_in_the_loader(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loader that takes 3 s a batch and a step that takes 1 s, 75 % of the time is waiting."""
    now = [0.0]
    monkeypatch.setattr(whole.time, "perf_counter", lambda: now[0])

    class Batches:
        def __iter__(self) -> Batches:
            return self

        def __next__(self) -> None:
            now[0] += 3

    class Step:
        device = CPU

        def __call__(self, *_: object) -> None:
            now[0] += 1

    assert whole._train(Step(), Batches(), 4) == (16.0, 12.0)  # type: ignore[arg-type]


def test_a_check_says_what_a_run_would_be(
    small: list[str], shapes: Path, tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(shapes.rglob("*"))
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path / "none"), "--check") == 0
    output = capsys.readouterr().out
    cfg = load_config(DEMO, [*small, "OUTPUT_DIR", str(tmp_path / "none")])
    kept = tmp_path / "kept.yaml"
    kept.write_text(output[: output.index("DATA.TRAIN_LIST:")])
    assert load_config(str(kept)) == cfg
    assert (
        "DATA.TRAIN_LIST: 24 videos of 8 of 8 classes, 3 to 3 in each\n  8 of 8 files tried can be read"
        in output
    )
    assert re.search(r"iresnet-18: 0.13 M parameters, 0\.\d\d GMACs for a clip of 4x32x32", output)
    sheet = re.search(r"first batch: (\S+\.png)", output)
    assert sheet
    with Image.open(sheet[1]) as picture:
        assert picture.height > 8 * 32
    Path(sheet[1]).unlink()
    assert re.search(r"training: \d+\.\d clips/s a process with 8 clips at a time \(the step alone", output)
    assert re.search(r"\d:\d\d:\d\d an epoch, \d:\d\d:\d\d for 2 epochs on 1 process\(es\)", output)
    assert re.search(r"testing: \d+\.\d{3} s for a video with 2x3 views", output)
    assert not (tmp_path / "none").exists()
    assert sorted(shapes.rglob("*")) == before


def test_a_check_without_enough_memory_is_one_line(
    small: list[str], run_net: RunNet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ResNet.forward

    def limited(self: ResNet, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(ResNet, "forward", limited)
    assert run_net(*small, "--check") == 1
    assert re.fullmatch(
        r"error: cpu has not enough memory for 8 clips .* but for 2: [^\n]*\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(("clips", "step", "videos"), [(0, 4, 1), (7, 7, 1), (18, 8, 3), (1000, 8, 11)])
def test_a_check_takes_what_a_cpu_computes_in_seconds(
    clips: int, step: int, videos: int, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 clips a batch and 11 test videos of 6 views: fewer tell a wrong speed, and more take minutes."""
    cfg, tested = load_config(DEMO, small), []
    with torch.device("meta"):
        work = complexity(build.build_model(cfg), (4, 32, 32)).multiply_adds
    monkeypatch.setattr(check_module, "CPU_WORK", clips * work)
    monkeypatch.setattr(whole, "testing", lambda cfg, records, _: tested.append(len(records)) or 2.0)
    lines = "\n".join(check(cfg))
    assert f"a process with {step} clips at a time" in lines
    assert tested == [videos]
    assert "testing: 0.500 s for a video with 2x3 views, 0:00:05 for all" in lines


def test_a_check_misses_as_much_as_a_run(
    small: list[str], shapes: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Absent test videos are a warning in both; absent training videos end both."""
    for name in ("train", "test"):
        lines = (shapes / f"{name}.csv").read_text().splitlines()
        (shapes / f"{name}_absent.csv").write_text("\n".join(["absent.mp4 0", *lines[1:]]) + "\n")
    run = [*small, "--check"]
    assert run_net("DATA.TEST_LIST", "test_absent.csv", *run) == 0
    assert run_net("DATA.TRAIN_LIST", "train_absent.csv", *run) == 1
    assert "1 of the 24 videos of DATA.TRAIN_LIST do not exist" in capsys.readouterr().err


def test_half_precision_is_measured_as_it_would_train(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are wrong in half precision compute in float32, as with TRAIN.HALF_PROBLEMS float32."""
    cfg = load_config(DEMO, small)
    checked = []
    monkeypatch.setattr(build, "check_precision", lambda cfg, *_: checked.append(cfg.TRAIN.MIXED_PRECISION))
    for variant in (model.Variant(), model.Variant(half=True)):
        variant.step(cfg, Processes(use_gpu=False))
    assert checked == [False, True]


def test_a_check_names_what_is_wrong(
    small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str], shapes: Path
) -> None:
    run = [*small, "--check"]
    assert run_net("DATA.TRAIN_LIST", "gone.csv", *run) == 1
    assert re.fullmatch(
        r"error: DATA.TRAIN_LIST: \S*gone.csv does not exist; [^\n]*\n", capsys.readouterr().err
    )
    (shapes / "broken.mp4").write_text("no video")
    lines = (shapes / "test.csv").read_text().splitlines()
    (shapes / "with_broken.csv").write_text("\n".join(["broken.mp4 0", *lines[1:]]) + "\n")
    run = ["DATA.TEST_LIST", "with_broken.csv", "TRAIN.ENABLE", "False", *run]
    assert run_net(*run) == 0
    assert re.search(r"broken.mp4: .*\n  \d+ of \d+ files tried can be read", capsys.readouterr().out)


def test_a_run_checks_its_batch_against_the_processes(small: list[str]) -> None:
    cfg = load_config(DEMO, [*small, "NUM_GPUS", "3"])
    with pytest.raises(ValueError, match=r"TRAIN.BATCH_SIZE 8 does not divide among 3 processes"):
        list(check(cfg))
