"""Multigrid training: PySlowFast's published schedule, by a computation of its own and by hand; runs that
are stopped inside a cycle; samples, steps and rates of a small run.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO, ROOT, RunNet, run_together
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_run_net import assert_same_weights, stats_of
from torch import nn

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.dataset import SampleKey
from video_iresnet.data.loader import BatchShape, EpochBatches, clip_loader
from video_iresnet.engine.checkpoint import load_checkpoint
from video_iresnet.engine.multigrid import Normalization, long_cycles, normalization, phase_of, short_cycle
from video_iresnet.engine.step import Step
from video_iresnet.engine.train import Agreement
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError

KINETICS = str(ROOT / "configs/kinetics/SLOW_8x8_R50_multigrid.yaml")
CLIPS = {"8x8": ["DATA.NUM_FRAMES", "8"], "32x2": ["DATA.NUM_FRAMES", "32", "DATA.SAMPLING_RATE", "2"]}
# PySlowFast's schedule for both sizes: the last epoch of each phase, and by hand how many times 64 clips are
# in the batches of its short cycle, the fraction of the frames, and the crops.
ENDS = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329, 343, 358]
QUARTER, HALF, LARGE, FULL = (
    ((16, 8, 8), Fraction(1, 4), (112, 158, 158)),
    ((8, 4, 4), Fraction(1, 2), (112, 158, 158)),
    ((8, 4, 2), Fraction(1, 2), (112, 158, 224)),
    ((4, 2, 1), Fraction(1), (112, 158, 224)),
)
PHASES = [QUARTER, HALF, LARGE, FULL] * 3 + [FULL] * 2
RATES = [8, 4, 2, 1, 0.8, 0.4, 0.2, 0.1, 0.08, 0.04, 0.02, 0.01, 0.01, 0.001]


def kinetics(clips: str, *more: str) -> Config:
    return load_config(KINETICS, [*CLIPS[clips], *more])


@pytest.mark.parametrize("clips", CLIPS)
def test_the_published_schedule(clips: str) -> None:
    phases = build.build_phases(kinetics(clips))
    assert [phase.end_epoch for phase in phases] == ENDS
    assert [phase.first_epoch for phase in phases] == [0, *ENDS[:-1]]
    assert [phase.relative_rate for phase in phases] == pytest.approx(RATES)
    frames, rate = map(int, clips.split("x"))
    for phase, (more, part, crops) in zip(phases, PHASES, strict=True):
        largest = int(rate / part)
        expected = [(64 * n, frames * part, crop, largest) for n, crop in zip(more, crops, strict=True)]
        assert [tuple(shape) for shape in phase.shapes] == expected


def ends_by_the_rules(
    steps: list[int], max_epoch: int, epoch_factor: Fraction, batches: list[tuple[int, ...]]
) -> list[int]:
    """The last epochs of the phases, from the paper's rules in exact numbers.

    All parts of a long cycle have as many iterations, so the epochs of part k of K are those of its step
    times m_k / M, with m_k the mean size of its batches and M their sum; a step of e epochs has e * K / M
    iterations, in units of ordinary epochs. The last phase has the same fraction K / M of its own. All are
    then stretched to `epoch_factor` times the epochs.
    """
    means = [Fraction(sum(sizes), len(sizes)) for sizes in batches]
    saved = len(means) / sum(means)
    epochs = [(end - begin) * mean / sum(means) for begin, end in itertools.pairwise(steps) for mean in means]
    epochs.append((max_epoch - steps[-1]) * saved * means[-1])
    stretch = max_epoch * epoch_factor / sum(epochs)
    ends = [round(end) for end in itertools.accumulate(part * stretch for part in epochs)]
    return [*ends[:-1], (ends[-2] + ends[-1]) // 2, ends[-1]]


def test_the_epochs_follow_from_the_rules() -> None:
    """For the published numbers, and others, with and without the short cycle."""
    both = [more for more, _, _ in (QUARTER, HALF, LARGE, FULL)]
    long = [(8,), (4,), (2,), (1,)]
    assert ends_by_the_rules([0, 94, 154, 196], 239, Fraction(3, 2), both) == ENDS
    for short_factors, batches in (([0.5, 0.5**0.5], both), ([], long)):
        for steps, most, factor in (([0, 44, 88, 118], 130, 1.0), ([0, 14], 22, 2.5), ([0, 9, 10], 40, 0.7)):
            phases = long_cycles(
                BatchShape(64, 8, 224), 8, steps=steps, max_epoch=most, epoch_factor=factor, gamma=0.5,
                factors=[(0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1)], short_factors=short_factors,
            )  # fmt: skip
            ends = ends_by_the_rules(steps, most, Fraction(factor), batches)
            assert [phase.end_epoch for phase in phases] == [end for end, _ in itertools.groupby(ends) if end]
            assert phases[-1].relative_rate == pytest.approx(0.5 ** (len(steps) - 1))
            assert all(len(phase.shapes) == len(short_factors) + 1 for phase in phases)


def test_rates_of_the_published_schedule() -> None:
    """The warm-up ends at the rate of the first phase; each phase has its own from its first epoch on."""
    rate = build.build_schedule(kinetics("8x8"))
    assert rate(0) == pytest.approx(0.01)
    assert rate(17 / 358) == pytest.approx((0.01 + 0.8) / 2)
    starts = [34, *ENDS[:-1]]
    assert [rate(epoch / 358) for epoch in starts] == pytest.approx([0.1 * factor for factor in RATES])
    assert [rate((end - 0.01) / 358) for end in ENDS] == pytest.approx([0.1 * factor for factor in RATES])
    scaled = build.build_schedule(kinetics("8x8", "SOLVER.REFERENCE_BATCH_SIZE", "32", "SOLVER.GAMMA", "0.5"))
    assert scaled(300 / 358) == pytest.approx(0.1 * 2 * 4 * 0.5**2)


def test_the_short_cycle_alone_keeps_the_policy() -> None:
    """358 epochs; steps move with them; rates do not follow the batches."""
    alone = ["MULTIGRID.LONG_CYCLE", "False", "SOLVER.LRS", "[1,0.1,0.01,0.001]"]
    cfg = kinetics("8x8", *alone, "DATA.TRAIN_JITTER_RATE", "9")
    (phase,) = build.build_phases(cfg)
    assert phase[:2] == (0, 358)
    assert phase.shapes == ((256, 8, 112, 9), (128, 8, 158, 9), (64, 8, 224, 9))
    rate = build.build_schedule(cfg)
    starts = [34, 141, 231, 294]
    assert [rate(epoch / 358) for epoch in starts] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert [rate((epoch - 0.1) / 358) for epoch in (141, 231)] == pytest.approx([0.1, 0.01])
    cosine = build.build_schedule(kinetics("8x8", *alone, "SOLVER.LR_POLICY", "cosine"))
    assert cosine(0.5) == pytest.approx(0.05)
    assert build.build_norm(cfg, 3, 8) == Normalization("batchnorm", devices=8)


def test_without_cycles_nothing_changes() -> None:
    cfg = load_config(DEMO)
    assert build.build_phases(cfg) == [(0, 11, (BatchShape(16, 8, 48),), 1.0)]
    assert short_cycle(BatchShape(16, 8, 48, 5), 48, []) == (BatchShape(16, 8, 48, 5),)
    batches = build.build_batches(cfg, 100)
    assert build.schedule_text(cfg, batches, 1) == "11 epochs of 6 steps of 16 clips"


@pytest.mark.parametrize(
    ("clips", "processes", "kind", "number"),
    [
        (64, 8, "sub_batchnorm", 8), (16, 8, "sub_batchnorm", 2), (8, 8, "batchnorm", 1),
        (4, 8, "sync_batchnorm", 2), (1, 8, "sync_batchnorm", 8), (3, 8, "sync_batchnorm", 2),
        (15, 1, "batchnorm", 1), (28, 1, "sub_batchnorm", 2), (1, 1, "batchnorm", 1),
        (1, 6, "sync_batchnorm", 6), (2, 6, "sync_batchnorm", 3), (1, 12, "sync_batchnorm", 6),
    ],
)  # fmt: skip
def test_normalization_is_over_about_eight_clips(clips: int, processes: int, kind: str, number: int) -> None:
    """PySlowFast's numbers, where they divide the clips and the processes."""
    splits, devices = (number, 1) if kind == "sub_batchnorm" else (1, number)
    assert normalization(clips, processes, 8) == Normalization(kind, splits, devices)


def test_the_schedule_as_text() -> None:
    cfg = kinetics("8x8", "SOLVER.BASE_LR", "0.2")
    text = build.schedule_text(cfg, build.build_batches(cfg, 240_000), 16).splitlines()
    assert text[0].startswith("358 epochs, ")
    assert [re.split(r"  +", line) for line in text[1:4]] + [re.split(r"  +", text[-1])] == [
        ["epochs", "rate", "clips x frames x crop of the batches in turn", "sampling rate"],
        ["1-73", "1.6", "1024x2x112, 512x2x158, 512x2x158", "up to 32", "BN in 4 parts"],
        ["74-110", "0.8", "512x4x112, 256x4x158, 256x4x158", "up to 16", "BN in 2 parts"],
        ["344-358", "0.0002", "256x8x112, 128x8x158, 64x8x224", "up to 8", "BN over 2 processes"],
    ]
    halves = kinetics("8x8", "TRAIN.ACCUMULATION", "2")
    assert build.build_norm(halves, 0, 8) == Normalization("sub_batchnorm", splits=4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("SOLVER.LR_POLICY cosine", "SOLVER.LR_POLICY is cosine, but MULTIGRID.LONG_CYCLE follows SOLVER.ST"),
        ("SOLVER.STEPS [0]", r"SOLVER.STEPS is \[0.0\]; with MULTIGRID.LONG_CYCLE, expected two or more"),
        ("SOLVER.STEPS [0,94,94]", "expected two or more ascending numbers"),
        ("SOLVER.STEPS [0,239]", "and below SOLVER.MAX_EPOCH 239"),
        ("SOLVER.STEPS [1,94]", "ascending numbers from 0"),
        ("BN.NORM_TYPE sync_batchnorm", "BN.NORM_TYPE is sync_batchnorm, but MULTIGRID.LONG_CYCLE changes"),
        ("MULTIGRID.LONG_CYCLE_FACTORS []", r"MULTIGRID.LONG_CYCLE_FACTORS is \[\]; expected pairs"),
        ("MULTIGRID.LONG_CYCLE_FACTORS [1,1]", r"is '\[1,1\]'; expected pairs of numbers like \[\[0.5"),
        ("MULTIGRID.LONG_CYCLE_FACTORS [[1]]", "expected pairs of numbers"),
        ("MULTIGRID.LONG_CYCLE_FACTORS [[1,True]]", "expected pairs of numbers"),
        ("MULTIGRID.LONG_CYCLE_FACTORS 1", "expected pairs of numbers"),
        ("MULTIGRID.LONG_CYCLE_FACTORS [[0.5,2]]", r"is \[\[0.5, 2.0\]\]; expected numbers in \(0, 1\]"),
        ("MULTIGRID.SHORT_CYCLE_FACTORS [0.5,0.9]", "expected numbers up to 0.707.*, the smallest factor of"),
        ("MULTIGRID.SHORT_CYCLE_FACTORS [0.05]", "TRAIN_CROP_SIZE 224 gives crops of 11 pixels .* least 16"),
        ("MULTIGRID.EPOCH_FACTOR 0", "MULTIGRID.EPOCH_FACTOR is 0.0; expected a number in"),
        ("MULTIGRID.EPOCH_FACTOR 0.1", "SOLVER.MAX_EPOCH 239, by MULTIGRID.EPOCH_FACTOR 23"),
        ("MULTIGRID.BN_BASE_SIZE 0", "MULTIGRID.BN_BASE_SIZE is 0; expected a number in"),
        ("SOLVER.GAMMA 0", "SOLVER.GAMMA is 0.0; expected a number in"),
        ("RESNET.TEMPORAL_KERNELS full", "NUM_FRAMES 8 by MULTIGRID.LONG_CYCLE_FACTORS, 2, is less than 4"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_one_line(overrides: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        kinetics("8x8", *overrides.split())


def test_a_clip_keeps_a_frame() -> None:
    """Networks of three stages have no temporal strides that would ask for more."""
    stages = ["RESNET.STAGES", "3", "RESNET.DEPTH", "20", "RESNET.TEMPORAL_KERNELS", "full"]
    with pytest.raises(InputError, match=r"which leaves nothing of DATA\.NUM_FRAMES"):
        kinetics("8x8", *stages, "MULTIGRID.LONG_CYCLE_FACTORS", "[[0.05,1],[1,1]]")


def test_the_largest_batch_must_fit_the_list() -> None:
    message = (
        r"TRAIN.BATCH_SIZE 64 makes batches of 1024 clips \(MULTIGRID\), which is more than the 1000 videos"
    )
    with pytest.raises(InputError, match=message):
        build.build_batches(kinetics("8x8"), 1000)
    assert build.build_batches(kinetics("8x8"), 1024).steps(0) == 1
    build.build_batches(kinetics("8x8", "TRAIN.ENABLE", "False", "TEST.ENABLE", "True"), 1024)


def test_half_precision_is_checked_for_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in one of them computes in float32 in all; it may be found more than once."""
    sizes = []

    def check(network: object, precision: object, size: tuple[int, ...], **options: object) -> list[str]:
        sizes.append(size)
        return [f"layer{size[2]}"]

    monkeypatch.setattr(build, "check", check)
    network = torch.nn.Identity()
    found = build.check_precision(kinetics("8x8"), network, Processes(use_gpu=False))
    assert found == ["layer2", "layer4", "layer8"]
    small, middle, large = ([(1, 3, t, s, s) for t in (2, 4, 8)] for s in (112, 158, 224))
    assert sizes == sorted([*small, *middle, *large[1:]])


# A run of 6 epochs: phases of 2, 2, 1 and 1 epochs of 1, 2, 4 and 4 steps.
TINY = """DATA.NUM_FRAMES 8 TRAIN.BATCH_SIZE 2 TEST.ENABLE False SOLVER.LR_POLICY steps_with_relative_lrs
SOLVER.STEPS [0,2] SOLVER.MAX_EPOCH 3 SOLVER.WARMUP_EPOCHS 0 SOLVER.BASE_LR 0.01 MULTIGRID.LONG_CYCLE True
MULTIGRID.LONG_CYCLE_FACTORS [[0.5,0.5],[0.5,1],[1,1]] MULTIGRID.SHORT_CYCLE True
MULTIGRID.SHORT_CYCLE_FACTORS [0.5] MULTIGRID.EPOCH_FACTOR 2
MULTIGRID.BN_BASE_SIZE 4""".split()  # noqa: SIM905
STEPS_OF_EPOCHS = [1, 1, 2, 2, 4, 4]


@pytest.fixture(scope="module")
def tiny(small: list[str]) -> list[str]:
    return [*small, *TINY]


def test_samples_do_not_depend_on_workers(tiny: list[str]) -> None:
    """Over several phases, from within the first; the sizes and the rates are those of the phases."""
    cfg = load_config(DEMO, tiny)
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    seen: list[list[torch.Tensor]] = []
    for workers in (0, 2):
        batches = build.build_batches(cfg, len(records))
        batches.start = 1, 0
        data = build.build_training_data(cfg, records)
        with clip_loader(data, batches, num_workers=workers, pin_memory=False) as loader:
            seen.append([batch.clips for batch in itertools.islice(loader, 9)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    small, large, full = (16, 3, 4, 16, 16), (4, 3, 4, 32, 32), (2, 3, 8, 32, 32)
    short = (8, 3, 8, 16, 16)
    assert [tuple(clips.shape) for clips in seen[0]] == [
        small, small, large, small, large, short, full, short, full,
    ]  # fmt: skip
    keys = [next(iter(build.build_batches(cfg, 24)))[0], *batches_after(build.build_batches(cfg, 24), 2)[0]]
    assert [key[2:] for key in keys[:2]] == [(4, 16, 4), (4, 32, 4)]


def batches_after(batches: EpochBatches, epoch: int) -> list[list[SampleKey]]:
    return list(itertools.islice(batches.after(epoch), 3))


def test_batches_after_an_epoch_have_its_own_size(tiny: list[str]) -> None:
    """For precise statistics: samples of the coming epoch in the size of the last one, without its short
    cycle.
    """
    batches = build.build_batches(load_config(DEMO, tiny), 24)
    for epoch, size in ((1, (4, 16, 4)), (3, (4, 32, 4)), (5, (8, 32, 2))):
        ahead = batches_after(batches, epoch)
        assert {key[2:] for keys in ahead for key in keys} == {size}
        assert {key.epoch for keys in ahead for key in keys} <= {epoch + 1, epoch + 2, epoch + 3}
        assert ahead[0][0].epoch == epoch + 1
        assert ahead[0][0].record == batches.records_of(epoch + 1, 0)[0]


# Of a step: how many were done before, the progress, the size of its batch, and the kinds of normalization.
Noted = tuple[int, float, tuple[int, ...], set[str]]


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    noted: list[Noted] = []
    original = Step.__call__

    def call(step: Step, batch: Any, done: int, progress: float) -> Any:
        kinds = {f"{type(m).__name__}{getattr(m, 'splits', '')}" for m in step.network.modules()}
        noted.append((done, progress, tuple(batch.clips.shape), {kind for kind in kinds if "Norm" in kind}))
        return original(step, batch, done, progress)

    monkeypatch.setattr(Step, "__call__", call)
    return noted


DROPOUT = ["MODEL.DROPOUT_RATE", "0.5", "BN.USE_PRECISE_STATS", "True", "TRAIN.EVAL_PERIOD", "2"]


@pytest.fixture(scope="module")
def trained(
    tiny: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet
) -> tuple[Path, list[Noted]]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        noted = watch_steps(patch)
        assert run_net(*tiny, *DROPOUT, "OUTPUT_DIR", str(folder)) == 0
    return folder, noted


def test_a_run_follows_its_phases(
    trained: tuple[Path, list[Noted]],
) -> None:
    """Sizes, normalization, rates, steps done and progress of every step, and what the run tells of them."""
    folder, noted = trained
    assert [done for done, *_ in noted] == list(range(14))
    progress = [(epoch + step / n) / 6 for epoch, n in enumerate(STEPS_OF_EPOCHS) for step in range(n)]
    assert [at for _, at, *_ in noted] == pytest.approx(progress)
    small, large, full, short = (16, 3, 4, 16, 16), (4, 3, 4, 32, 32), (2, 3, 8, 32, 32), (8, 3, 8, 16, 16)
    assert [size for _, _, size, _ in noted] == [small] * 2 + [small, large] * 2 + [short, full] * 4
    assert [kinds for *_, kinds in noted] == [{"SubBatchNorm4"}] * 2 + [{"BatchNorm3d"}] * 12
    steps = stats_of(folder, "train_iter_")
    assert [(s["epoch"], s["iter"]) for s in steps] == [
        (f"{epoch}/6", f"{step + 1}/{n}") for epoch, n in enumerate(STEPS_OF_EPOCHS, 1) for step in range(n)
    ]
    assert [s["lr"] for s in steps] == pytest.approx([0.08] * 2 + [0.02] * 4 + [0.01] * 4 + [0.001] * 4)
    assert [s["epoch"] for s in stats_of(folder, "train_epoch")] == [f"{epoch}/6" for epoch in range(1, 7)]
    assert [s["epoch"] for s in stats_of(folder, "val_epoch")] == ["2/6", "4/6", "6/6"]
    curves = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train_iter/loss")] == list(range(1, 15))
    assert [event.step for event in curves.Scalars("train_epoch/loss")] == [1, 2, 4, 6, 10, 14]
    log = (folder / "stdout.log").read_text()
    assert "on 24 videos: 6 epochs, 14 steps; 1 process(es), cpu" in log
    assert re.search(r"1-2 +0.08 +16x4x16, 16x4x16 +up to 4 +BN in 4 parts\n", log)
    assert "training is complete: 6 epochs" in log


def test_a_run_stopped_inside_a_cycle_goes_on_as_if_nothing_had_happened(
    trained: tuple[Path, list[Noted]],
    tiny: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After the third step, the first of two of the second phase, and after the second of four later."""
    noted = watch_steps(monkeypatch)
    original = Agreement.reach

    def reach(agreement: Agreement, *more: Any) -> tuple[bool, bool]:
        if len(noted) in (2, 7):  # before the step that is the last
            os.kill(os.getpid(), signal.SIGTERM)
        return original(agreement, *more)

    monkeypatch.setattr(Agreement, "reach", reach)
    run = [*tiny, *DROPOUT, "OUTPUT_DIR", str(tmp_path)]
    for where in ("epoch 3 after step 1 of 2", "epoch 5 after step 2 of 4"):
        assert run_net(*run) == 128 + signal.SIGTERM
        assert f"stopped in {where}" in capfd.readouterr().err
        for change in ("SOLVER.STEPS [0,1]", "SOLVER.MAX_EPOCH 4", "MULTIGRID.EPOCH_FACTOR 3"):
            assert run_net(*run, *change.split()) == 1
            assert "which can change only between two epochs" in capfd.readouterr().err
        assert run_net(*run, "MULTIGRID.LONG_CYCLE", "False", "SOLVER.LR_POLICY", "cosine") == 1
        assert "MULTIGRID.LONG_CYCLE was True and is False" in capfd.readouterr().err
    assert run_net(*run) == 0
    folder, uninterrupted = trained
    assert noted == uninterrupted
    assert_same_weights(folder, tmp_path)
    ours, theirs = (
        [(s["loss"], s["lr"], s["iter"]) for s in stats_of(of, "train_iter_")] for of in (tmp_path, folder)
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_compiled_network_is_compiled_for_each_size(
    tiny: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without code generation, which takes minutes here. Five sizes and normalizations are trained, and two
    are validated, of which one has fewer videos.
    """
    graphs, options = [], []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_network(network: nn.Module, **more: Any) -> None:
        options.append(more)
        original(network, backend=backend, **more)

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_network)
    assert run_net(*tiny, "OUTPUT_DIR", str(tmp_path / "eager")) == 0
    torch._dynamo.reset()  # what other tests have compiled
    with torch._dynamo.config.patch(recompile_limit=8):
        assert run_net(*tiny, "TRAIN.COMPILE", "True", "OUTPUT_DIR", str(tmp_path / "compiled")) == 0
        assert torch._dynamo.config.recompile_limit == 20
    assert_same_weights(tmp_path / "compiled", tmp_path / "eager")
    assert options == [{"dynamic": False}]
    assert 6 <= len(graphs) <= 7


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_two_processes_train_as_one(tiny: list[str], tmp_path: Path, run_net: RunNet) -> None:
    """In all phases, statistics are those of the same clips, by parts of one process or by two processes
    together. So the gradients are the same, as momenta tell; the rate is so low that the rounding of one step
    hardly reaches the next.
    """
    run = [*tiny, "SOLVER.BASE_LR", "1e-6", "OUTPUT_DIR"]
    assert run_net(*run, str(tmp_path / "one")) == 0
    output = run_together(2, "tools/run_net.py", "--cfg", DEMO, *run, str(tmp_path / "two"))
    assert "BN in 2 parts" in output
    assert "BN over 2 processes" in output
    for name in ("checkpoint_epoch_00004.pyth", "checkpoint_epoch_00006.pyth"):
        one, two = (
            load_checkpoint(tmp_path / of / "checkpoints" / name)["optimizer_state"]["state"]
            for of in ("one", "two")
        )
        assert len(one) == len(two) > 60
        for number, state in one.items():
            momentum = state["momentum_buffer"]
            assert (two[number]["momentum_buffer"] - momentum).norm() < 2e-3 * momentum.norm()


def test_the_phase_after_the_end_is_the_last() -> None:
    phases = build.build_phases(kinetics("8x8"))
    assert [phases.index(phase_of(phases, epoch)) for epoch in (0, 72, 73, 357, 358)] == [0, 0, 1, 13, 13]


def test_a_check_before_a_run_has_its_epochs(
    tiny: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Speed is of the largest clips, whose steps take as long as the others."""
    assert run_net(*tiny, "OUTPUT_DIR", str(tmp_path), "--check") == 0
    output = capsys.readouterr().out
    assert "with 2 clips at a time" in output
    found = re.search(r"first batch: (\S+)\ntraining: (\d+\.\d) clips/s", output)
    assert found
    Path(found[1]).unlink()
    assert re.search(r"an epoch, \d:\d\d:\d\d for 6 epochs on 1 process", output)
    plain = build.without_multigrid(load_config(DEMO, tiny))
    assert build.build_batches(plain, 24).steps(0) == 12
    assert build.build_schedule(plain)(0.5) == pytest.approx(0.005)
