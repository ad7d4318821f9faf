"""Configs in PySlowFast's layout: what they become, what is told, what is refused, and runs of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, RunNet, run_together
from PIL import Image

from video_iresnet import build
from video_iresnet.config import changed_yaml, default_config, leaves, load_config, load_with_notes
from video_iresnet.data.sampling import Timeline
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.plain_yaml import parse_yaml
from video_iresnet.slowfast import NO_EFFECT, SAME, TRANSLATED, translate

# A recipe of Kinetics as PySlowFast writes them.
SLOW = """
TRAIN:
  ENABLE: True
  DATASET: kinetics
  BATCH_SIZE: 64
  EVAL_PERIOD: 10
  CHECKPOINT_PERIOD: 1
  AUTO_RESUME: True
DATA:
  NUM_FRAMES: 8
  SAMPLING_RATE: 8
  TRAIN_JITTER_SCALES: [256, 320]
  TRAIN_CROP_SIZE: 224
  TEST_CROP_SIZE: 256
  INPUT_CHANNEL_NUM: [3]
  PATH_PREFIX: # to be filled in
RESNET:
  ZERO_INIT_FINAL_BN: True
  DEPTH: 50
  TRANS_FUNC: bottleneck_transform
  STRIDE_1X1: False
  NUM_BLOCK_TEMP_KERNEL: [[3], [4], [6], [3]]
NONLOCAL:
  LOCATION: [[[]], [[]], [[]], [[]]]
  INSTANTIATION: softmax
BN:
  USE_PRECISE_STATS: True
  NUM_BATCHES_PRECISE: 200
SOLVER:
  BASE_LR: 0.1
  LR_POLICY: cosine
  MAX_EPOCH: 196
  WEIGHT_DECAY: 1e-4
  WARMUP_EPOCHS: 34
  WARMUP_START_LR: 0.01
  OPTIMIZING_METHOD: sgd
MODEL:
  NUM_CLASSES: 400
  ARCH: slow
  MODEL_NAME: ResNet
  LOSS_FUNC: cross_entropy
  DROPOUT_RATE: 0.5
TEST:
  ENABLE: True
  DATASET: kinetics
  BATCH_SIZE: 64
DATA_LOADER:
  NUM_WORKERS: 8
  PIN_MEMORY: True
NUM_GPUS: 8
NUM_SHARDS: 1
RNG_SEED: 0
OUTPUT_DIR: .
"""
# Fine-tuning on Something-Something-v2, on top of it.
SSV2 = """
_BASE_: slow.yaml
TRAIN: {DATASET: ssv2, EVAL_PERIOD: 2}
DATA: {INV_UNIFORM_SAMPLE: True, RANDOM_FLIP: False, REVERSE_INPUT_CHANNEL: True}
SOLVER:
  BASE_LR: 0.03
  LR_POLICY: steps_with_relative_lrs
  LRS: [1, 0.1, 0.01, 0.001, 0.0001, 0.00001]
  STEPS: [0, 14, 18, 22]
  MAX_EPOCH: 22
  WEIGHT_DECAY: 1e-6
  WARMUP_EPOCHS: 0.19
  WARMUP_START_LR: 0.0001
MODEL: {NUM_CLASSES: 174}
TEST: {DATASET: ssv2, NUM_ENSEMBLE_VIEWS: 1, NUM_SPATIAL_CROPS: 1}
"""
MULTIGRID = """_BASE_: slow.yaml
MULTIGRID: {LONG_CYCLE: True, SHORT_CYCLE: True}
SOLVER:
  LR_POLICY: steps_with_relative_lrs
  LRS: [1, 0.1, 0.01, 0.001, 0.0001, 0.00001]
  STEPS: [0, 94, 154, 196]
  MAX_EPOCH: 239
"""
SHRUNK = """RESNET.WIDTH_PER_GROUP 4 DATA.TRAIN_JITTER_SCALES [32,36] DATA.TRAIN_CROP_SIZE 32
DATA.TEST_CROP_SIZE 32 DATA.NUM_FRAMES 4 DATA.SAMPLING_RATE 2 MODEL.NUM_CLASSES 8 NUM_GPUS 0
DATA_LOADER.NUM_WORKERS 0 TRAIN.BATCH_SIZE 8 TEST.BATCH_SIZE 8 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0
LOG_PERIOD 1 TEST.NUM_ENSEMBLE_VIEWS 2"""
Load = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def slow(tmp_path: Path) -> str:
    (tmp_path / "slow.yaml").write_text(SLOW)
    return str(tmp_path / "slow.yaml")


@pytest.fixture
def load(slow: str, tmp_path: Path) -> Load:
    """The config and the notes of overrides (`KEY VALUE`, as text) on a recipe."""

    def load(overrides: str = "", text: str = "_BASE_: slow.yaml\nTRAIN: {DATASET: kinetics}") -> Any:
        (tmp_path / "c.yaml").write_text(text)
        return load_with_notes(str(tmp_path / "c.yaml"), overrides.split())

    return load


def told(notes: list[str], beginning: str) -> str:
    """The one note with this beginning."""
    (note,) = [note for note in notes if note.startswith(beginning)]
    return note


@pytest.mark.parametrize("arch", ["slow", "c2d", "i3d"])
def test_kinetics_recipes_are_what_a_hand_made_of_them(arch: str, load: Load) -> None:
    cfg, notes = load(f"MODEL.ARCH {arch}")
    ours = load_config(str(ROOT / f"configs/kinetics/{arch.upper()}_8x8_R50.yaml"))
    by_hand, found = dict(leaves(ours)), dict(leaves(cfg))
    assert {key: value for key, value in found.items() if value != by_hand[key]} == {
        "OUTPUT_DIR": ".", "NUM_GPUS": 8, "TRAIN.CHECKPOINT_PERIOD": 1, "TEST.BATCH_SIZE": 8,
        "DATA.TEST_LIST": "test.csv", "DATA.PATH_PREFIX": str(Path.cwd()), "DATA.PATH_LABEL_SEPARATOR": " ",
        **({"BN.USE_PRECISE_STATS": True} if by_hand.get("BN.USE_PRECISE_STATS") is False else {}),
    }  # fmt: skip
    assert told(notes, "without effect here") == "without effect here: DATA_LOADER.PIN_MEMORY, NONLOCAL.*"
    assert "is a config of PySlowFast" in notes[0]
    told(notes, "DATA.DECODING_BACKEND torchvision: PyAV")
    told(notes, "in every training: validation")
    told(notes, "BN.USE_PRECISE_STATS True")
    assert len(notes) == len(set(notes)) == 5


# Overrides of the recipe -> our keys. The columns come from a reading of PySlowFast, not from the module.
TRANSLATIONS: list[tuple[str, dict[str, Any]]] = [
    ("MODEL.ARCH i3d", {"MODEL.ARCH": "resnet", "RESNET.TEMPORAL_KERNELS": "i3d", "RESNET.TEMPORAL_POOL": 0}),
    ("MODEL.ARCH 2d", {"RESNET.TEMPORAL_KERNELS": "c2d", "RESNET.TEMPORAL_POOL": 1}),
    ("MODEL.ARCH slowonly", {"RESNET.TEMPORAL_KERNELS": "slow"}),
    ("MODEL.MODEL_NAME PTVResNet", {"MODEL.HEAD_PER_POSITION": True}),
    ("MULTIGRID.SHORT_CYCLE True", {"MODEL.HEAD_PER_POSITION": False}),
    ("RESNET.ZERO_INIT_FINAL_BN False", {"RESNET.ZERO_INIT_RESIDUAL": False}),
    ("TRAIN.BATCH_SIZE 16 NUM_SHARDS 4", {"TRAIN.BATCH_SIZE": 64, "SOLVER.BASE_LR": 0.1}),
    ("TRAIN.BATCH_SIZE 16 AUG.NUM_SAMPLE 2", {"TRAIN.BATCH_SIZE": 32, "AUG.NUM_SAMPLE": 2}),
    (
        "NUM_SHARDS 4 SOLVER.BASE_LR_SCALE_NUM_SHARDS True SOLVER.COSINE_END_LR 1e-3",
        {"SOLVER.BASE_LR": 0.4, "SOLVER.WARMUP_START_LR": 0.04, "SOLVER.COSINE_END_LR": 0.004},
    ),
    ("TEST.BATCH_SIZE 24 NUM_GPUS 8", {"TEST.BATCH_SIZE": 3, "NUM_GPUS": 8}),
    ("TEST.BATCH_SIZE 24 NUM_GPUS 0", {"TEST.BATCH_SIZE": 24, "NUM_GPUS": 0}),
    ("TEST.NUM_SPATIAL_CROPS 1 DATA.TEST_CROP_SIZE 224", {"DATA.TEST_SHORT_SIDE": 256}),
    ("TEST.NUM_SPATIAL_CROPS 3 DATA.TEST_CROP_SIZE 224", {"DATA.TEST_SHORT_SIDE": 0}),
    ("TEST.NUM_ENSEMBLE_VIEWS -1", {"TEST.NUM_ENSEMBLE_VIEWS": 10}),
    ("TEST.NUM_TEMPORAL_CLIPS [3,5]", {"TEST.NUM_ENSEMBLE_VIEWS": 5}),
    ("DATA.USE_OFFSET_SAMPLING True DATA.TARGET_FPS 25", {
        "DATA.SAMPLER": "slowfast", "DATA.TARGET_FPS": 25.0, "DATA.USE_OFFSET_SAMPLING": True,
    }),
    ("DATA.DECODING_BACKEND decord", {"DATA.DECODING_BACKEND": "decord"}),
    ("DATA.PATH_PREFIX /videos", {"DATA.PATH_PREFIX": "/videos"}),
    ("DATA.PATH_PREFIX s3://videos", {"DATA.PATH_PREFIX": "s3://videos"}),
    ("DATA.PATH_LABEL_SEPARATOR ,", {"DATA.PATH_LABEL_SEPARATOR": ","}),
    ("AUG.AA_TYPE rand-m7-n4-mstd0.5-inc1", {"AUG.RAND_MAGNITUDE": 0, "AUG.RE_PROB": 0.0}),
    ("AUG.ENABLE True", {"AUG.RAND_MAGNITUDE": 27, "AUG.RE_PROB": 0.25, "AUG.COLOR_JITTER": 0.0}),
    ("AUG.ENABLE True AUG.AA_TYPE rand-m7-n4-mstd0.5-inc1", {"AUG.RAND_MAGNITUDE": 21}),
    ("AUG.ENABLE True AUG.AA_TYPE rand-mstd0.5", {"AUG.RAND_MAGNITUDE": 30}),
    ("MIXUP.LABEL_SMOOTH_VALUE 0.2", {"MIXUP.ENABLE": False, "MIXUP.LABEL_SMOOTH_VALUE": 0.0}),
    ("MIXUP.ENABLE True", {"MIXUP.LABEL_SMOOTH_VALUE": 0.1, "MIXUP.ALPHA": 0.8}),
    ("TRAIN.CHECKPOINT_INFLATE True", {"TRAIN.CHECKPOINT_INFLATE": "average"}),
    ("RNG_SEED 7 SOLVER.WARMUP_EPOCHS 3", {"RNG_SEED": 7, "SOLVER.WARMUP_EPOCHS": 3.0}),
    (
        "SOLVER.LR_POLICY steps_with_relative_lrs SOLVER.STEPS [0,90,196] SOLVER.LRS [1,0.1]",
        {"SOLVER.STEPS": [0.0, 90.0], "SOLVER.LRS": [1.0, 0.1]},
    ),
    ("BN.NORM_TYPE sub_batchnorm BN.NUM_SPLITS 2", {"BN.NORM_TYPE": "sub_batchnorm", "BN.NUM_SPLITS": 2}),
    (
        "BN.NORM_TYPE sync_batchnorm_apex BN.NUM_SYNC_DEVICES 4",
        {"BN.NORM_TYPE": "sync_batchnorm", "BN.NUM_SYNC_DEVICES": 4},
    ),
    ("BN.NORM_TYPE sync_batchnorm BN.GLOBAL_SYNC True", {"BN.NUM_SYNC_DEVICES": 0}),
    (
        "SOLVER.OPTIMIZING_METHOD mt_adamw SOLVER.BETAS (0.9,0.95) SOLVER.CLIP_GRAD_L2NORM 2",
        {"SOLVER.OPTIMIZING_METHOD": "adamw", "SOLVER.BETAS": [0.9, 0.95], "SOLVER.CLIP_GRAD_L2NORM": 2.0},
    ),
    (
        "SOLVER.CLIP_GRAD_VAL 1 SOLVER.CLIP_GRAD_L2NORM 2",
        {"SOLVER.CLIP_GRAD_VAL": 1.0, "SOLVER.CLIP_GRAD_L2NORM": 0.0},
    ),
    ("TRAIN.MIXED_PRECISION True", {"TRAIN.MIXED_PRECISION": True, "TRAIN.HALF_DTYPE": "float16"}),
    (
        "TRAIN.DATASET ptvkinetics TEST.DATASET ptvkinetics DATA.TEST_CROP_SIZE 224",
        {"DATA.LIST_FORMAT": "videos", "DATA.USE_OFFSET_SAMPLING": True, "DATA.TEST_SHORT_SIDE": 256},
    ),
    # keys that only this project has may be set too
    ("DATA.TEST_LIST val.csv TEST.STORED_VIEWS off DATA.SAMPLER dense", {
        "DATA.TEST_LIST": "val.csv", "TEST.STORED_VIEWS": "off", "DATA.SAMPLER": "dense",
    }),
]  # fmt: skip


def test_multigrid(load: Load) -> None:
    cfg, notes = load("BN.NORM_TYPE sync_batchnorm BN.NUM_SYNC_DEVICES 4 MULTIGRID.EVAL_FREQ 2", MULTIGRID)
    assert (cfg.MULTIGRID.LONG_CYCLE, cfg.MULTIGRID.SHORT_CYCLE, cfg.MODEL.HEAD_PER_POSITION) == (
        True,
        True,
        False,
    )
    assert cfg.BN.NORM_TYPE == "batchnorm"  # long cycles choose it, there too
    assert "EVAL_FREQ" in told(notes, "MULTIGRID.LONG_CYCLE True: ")
    steps = "SOLVER.STEPS [0,94,196] SOLVER.MAX_EPOCH 196"  # the last one counts
    with pytest.raises(InputError, match=r"SOLVER.STEPS is .*196"):
        load(steps, MULTIGRID)


@pytest.mark.parametrize(("overrides", "expected"), TRANSLATIONS, ids=[line[0] for line in TRANSLATIONS])
def test_what_keys_become(overrides: str, expected: dict[str, Any], load: Load) -> None:
    values = dict(leaves(load(overrides)[0]))
    assert {key: values[key] for key in expected} == expected


def test_defaults_are_those_of_pyslowfast(tmp_path: Path) -> None:
    """Where they differ from ours."""
    (tmp_path / "c.yaml").write_text("TRAIN: {DATASET: kinetics}\nMODEL: {ARCH: slow}")
    cfg, _ = load_with_notes(str(tmp_path / "c.yaml"))
    ours = dict(leaves(default_config()))
    assert {key: value for key, value in leaves(cfg) if value != ours[key]} == {
        "OUTPUT_DIR": ".", "RNG_SEED": 1, "DATA.PATH_PREFIX": str(Path.cwd()),
        "DATA.PATH_LABEL_SEPARATOR": " ", "DATA.SAMPLER": "slowfast", "DATA.TARGET_FPS": 30.0,
        "MODEL.ARCH": "resnet", "MODEL.HEAD_PER_POSITION": True, "RESNET.TEMPORAL_KERNELS": "slow",
    }  # fmt: skip
    assert (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.NESTEROV, cfg.MODEL.DROPOUT_RATE) == (300, True, 0.5)
    assert (cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS, cfg.TEST.BATCH_SIZE) == (10, 3, 8)


def test_something_something(load: Load) -> None:
    cfg, notes = load(text=SSV2)
    values = dict(leaves(cfg))
    expected = {
        "DATA.LIST_FORMAT": "frames", "DATA.TEST_LIST": "val.csv", "DATA.SAMPLER": "segments",
        "DATA.TARGET_FPS": 0.0, "DATA.RANDOM_FLIP": False, "DATA.INV_UNIFORM_SAMPLE": True,
        "DATA.TEST_SHORT_SIDE": 0, "DATA.PATH_LABEL_SEPARATOR": "", "SOLVER.STEPS": [0.0, 14.0, 18.0],
        "SOLVER.LRS": [1.0, 0.1, 0.01], "SOLVER.WEIGHT_DECAY": 1e-6, "MODEL.NUM_CLASSES": 174,
        "TEST.NUM_ENSEMBLE_VIEWS": 1, "TEST.NUM_SPATIAL_CROPS": 1,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert "left" in told(notes, "TEST.NUM_SPATIAL_CROPS 1")
    assert not [note for note in notes if "BGR" in note or "DECODING" in note or "VIEWS" in note]
    cfg, notes = load(
        "TEST.NUM_ENSEMBLE_VIEWS 10 DATA.REVERSE_INPUT_CHANNEL False DATA.RANDOM_FLIP True", SSV2
    )
    assert cfg.TEST.NUM_ENSEMBLE_VIEWS == 1
    told(notes, "TEST.NUM_ENSEMBLE_VIEWS is 1")
    told(notes, "DATA.REVERSE_INPUT_CHANNEL False")
    told(notes, "DATA.RANDOM_FLIP True")


def test_rates_and_clips_are_those_of_pyslowfast(load: Load) -> None:
    """Numbers that its own functions gave."""
    cfg, _ = load()
    rate = build.build_schedule(cfg)
    expected = {0: 0.01, 17: 0.051379, 34: 0.092757, 98: 0.05}
    assert [rate(e / 196) for e in expected] == pytest.approx(list(expected.values()), abs=1e-6)
    clips = build.build_test_data(cfg, []).sampler.uniform_clips(Timeline(300, 30.0), 8, 10)
    assert (clips[0], clips[9]) == ([0, 9, 18, 27, 36, 45, 54, 63], [212, 221, 230, 239, 248, 257, 266, 275])
    cfg, _ = load("DATA.USE_OFFSET_SAMPLING True")
    clips = build.build_test_data(cfg, []).sampler.uniform_clips(Timeline(300, 30.0), 8, 10)
    assert clips[9] == [234, 243, 252, 261, 270, 279, 288, 297]
    cfg, _ = load(text=SSV2)
    rate = build.build_schedule(cfg)
    expected = {0.1: 0.01583684, 0.19: 0.03, 14: 0.003, 18: 0.0003}
    assert [rate(e / 22) for e in expected] == pytest.approx(list(expected.values()))
    assert build.build_test_data(cfg, []).sampler.uniform_clips(Timeline(40, 30.0), 8, 1) == [
        [2, 7, 12, 17, 22, 26, 31, 36]
    ]


# Temporal kernels of the first convolutions of the stem and of the blocks of each stage.
KERNELS = {
    "slow": (1, [[1] * 3, [1] * 4, [3] * 6, [3] * 3]),
    "c2d": (1, [[1] * 3, [1] * 4, [1] * 6, [1] * 3]),
    "i3d": (5, [[3] * 3, [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]),
}


@pytest.mark.parametrize("arch", KERNELS)
def test_networks_are_those_of_pyslowfast(arch: str, load: Load) -> None:
    """Their head classifies each window of the size of training, and averages the probabilities."""
    cfg, _ = load(f"MODEL.ARCH {arch} {SHRUNK} DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 64")
    net = build.build_model(cfg).eval()
    stem, stages = KERNELS[arch]
    assert net.conv1.kernel_size == (stem, 7, 7)
    assert [[block.conv1.kernel_size[0] for block in stage] for stage in net.stages] == stages
    assert {block.conv2.kernel_size for stage in net.stages for block in stage} == {(1, 3, 3)}
    assert isinstance(net.temporal_pool, torch.nn.MaxPool3d) == (arch != "slow")
    assert not net.layer1[0].bn3.weight.any()
    assert net.plan.head_window == (4 if arch == "slow" else 2, 1, 1)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 4, 64, 64)).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_what_is_told_is_told_once(load: Load) -> None:
    overrides = """NUM_SHARDS 2 AUG.ENABLE True AUG.RE_MODE const TEST.NUM_ENSEMBLE_VIEWS -1
    DATA.ENSEMBLE_METHOD max DATA.REVERSE_INPUT_CHANNEL True TRAIN.CHECKPOINT_FILE_PATH w.pyth
    TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN ("backbone.",) TRAIN.KILL_LOSS_EXPLOSION_FACTOR 3
    DATA.TRAIN_JITTER_FPS 2.5 MODEL.FROZEN_BN True MODEL.FP16_ALLREDUCE True
    LOG_MODEL_INFO False SOLVER.STEP_SIZE 3 AUG.COLOR_JITTER 0.4 DATA.CROP_SIZE 9
    TENSORBOARD.ENABLE True TENSORBOARD.MODEL_VIS.ENABLE True MODEL.FC_INIT_STD 0.02"""
    _, notes = load(overrides)
    for beginning in (
        "TRAIN.BATCH_SIZE 64 is 128 here", "NUM_SHARDS 2: start torchrun", "AUG.AA_TYPE rand-m9",
        "AUG.RE_MODE const has no counterpart here", "5 tests follow each other there, with 1, 3, 5, 7, 10",
        "DATA.ENSEMBLE_METHOD max", "DATA.REVERSE_INPUT_CHANNEL True", "TRAIN.CHECKPOINT_FILE_PATH:",
        "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", "TRAIN.KILL_LOSS_EXPLOSION_FACTOR 3.0 has no counterpart here",
        "DATA.TRAIN_JITTER_FPS 2.5 has no counterpart here", "MODEL.FROZEN_BN True: ",
        "MODEL.FP16_ALLREDUCE True: gradients are averaged in bfloat16",
    ):  # fmt: skip
        told(notes, beginning)
    assert told(notes, "without effect") == (
        "without effect here: AUG.COLOR_JITTER, DATA.CROP_SIZE, DATA_LOADER.PIN_MEMORY, LOG_MODEL_INFO, "
        "MODEL.FC_INIT_STD, NONLOCAL.*, SOLVER.STEP_SIZE, TENSORBOARD.*"
    )
    assert len(notes) == len(set(notes))
    assert all("\n" not in note for note in notes)
    _, notes = load("TRAIN.DATASET ptvkinetics TEST.DATASET ptvkinetics DATA.INV_UNIFORM_SAMPLE True")
    told(notes, "DATA.INV_UNIFORM_SAMPLE True: takes effect")
    _, notes = load("TEST.NUM_SPATIAL_CROPS 1 TEST.NUM_TEMPORAL_CLIPS [3,5]")
    told(notes, "2 tests follow each other there, with 3, 5 clips")
    assert not [note for note in notes if "the crop is the centre" in note]  # as there, on Kinetics
    _, notes = load("TEST.NUM_SPATIAL_CROPS 3", SSV2)
    assert not [note for note in notes if "the crop is the centre" in note]
    _, notes = load("TRAIN.ENABLE False")
    assert not [note for note in notes if "BN." in note or "validation" in note]


def test_a_key_is_told_until_it_exists_here(slow: str) -> None:
    """Without a change of the translation."""
    given = {
        "TRAIN.DATASET": ("kinetics", slow), "MODEL.ARCH": ("slow", slow),
        "TRAIN.MIXED_PRECISION": (True, slow), "BN.USE_PRECISE_STATS": (True, slow),
        "SOLVER.CLIP_GRAD_L2NORM": ("2", slow), "SOLVER.OPTIMIZING_METHOD": ("mt_adamw", slow),
        "MODEL.FP16_ALLREDUCE": (True, slow),
    }  # fmt: skip
    later = {
        "TRAIN.MIXED_PRECISION": True, "TRAIN.HALF_DTYPE": "float16", "BN.USE_PRECISE_STATS": True,
        "SOLVER.CLIP_GRAD_L2NORM": 2.0, "SOLVER.OPTIMIZING_METHOD": "adamw", "TRAIN.BF16_ALLREDUCE": True,
    }  # fmt: skip
    known = {key: value for key, value in leaves(default_config()) if key not in later}
    values, notes = translate(given, known, slow)
    assert not values.keys() & later.keys()
    for key in ("TRAIN.MIXED_PRECISION True", "BN.USE_PRECISE_STATS True", "SOLVER.CLIP_GRAD_L2NORM 2.0"):
        told(notes, f"{key} has no counterpart here")
    told(notes, "SOLVER.OPTIMIZING_METHOD adamw has no counterpart here")
    values, notes = translate(given, known | later, slow)
    assert {key: values[key][0] for key in later} == later
    assert not [note for note in notes if "counterpart" in note]
    grid = {"MULTIGRID.LONG_CYCLE": False, "MULTIGRID.BN_BASE_SIZE": 8}
    values, _ = translate({**given, "MULTIGRID.LONG_CYCLE": (True, slow)}, known | grid, slow)
    assert {key: value for key, (value, _) in values.items() if "MULTI" in key} == {
        "MULTIGRID.LONG_CYCLE": True
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("MODEL.ARCH slowfast MODEL.MODEL_NAME SlowFast", "MODEL.ARCH slowfast in .* asks for two pathways"),
        ("MODEL.ARCH x3d MODEL.MODEL_NAME X3D", "MODEL.ARCH x3d in .* asks for another network"),
        ("MODEL.ARCH mvit MODEL.MODEL_NAME MViT VIT.HEADS 3", "MODEL.ARCH mvit"),
        ("MODEL.ARCH 2d MODEL.MODEL_NAME MViT", "MODEL.MODEL_NAME MViT"),
        ("MODEL.MODEL_NAME PTVCSN", "MODEL.MODEL_NAME PTVCSN"),
        ("TRAIN.DATASET ava TEST.DATASET ava DETECTION.ENABLE True", "DETECTION.ENABLE True .* boxes"),
        (
            "TRAIN.DATASET imagenet",
            "TRAIN.DATASET imagenet in the command line asks for another kind of data",
        ),
        ("TRAIN.DATASET charades DATA.MULTI_LABEL True", "DATA.MULTI_LABEL True .* several labels"),
        ("TEST.DATASET ssv2", "TEST.DATASET ssv2 .* other data than TRAIN.DATASET kinetics"),
        ("NONLOCAL.LOCATION [[[]],[[1,3]],[[]],[[]]]", "asks for non-local blocks"),
        ("TASK ssl MODEL.MODEL_NAME ContrastiveModel", "TASK ssl .* self-supervision"),
        ("MASK.ENABLE True", "masked pretraining"),
        ("SOLVER.LARS_ON True", "LARS"),
        ("RESNET.NUM_GROUPS 32", "ResNeXt"),
        ("RESNET.SPATIAL_STRIDES [[1],[2],[2],[1]]", "other strides"),
        ("RESNET.SPATIAL_DILATIONS [[1],[1],[1],[2]]", "dilated"),
        ("RESNET.TRANS_FUNC basic_transform", "other blocks"),
        ("RESNET.STRIDE_1X1 True", "strides in the 1x1 convolutions"),
        ("RESNET.DEPTH 18", "bottlenecks in a network of 18 layers"),
        ("RESNET.DEPTH 101", "RESNET.NUM_BLOCK_TEMP_KERNEL .* without temporal kernels in a ResNet-101"),
        ("RESNET.NUM_BLOCK_TEMP_KERNEL [3,4,6,3]", "not a number for each of four stages"),
        ("BN.EPSILON 1e-3", "another epsilon"),
        ("MODEL.LOSS_FUNC bce", "another loss"),
        ("MODEL.HEAD_ACT sigmoid", "another output"),
        ("MODEL.DETACH_FINAL_FC True", "the classifier alone"),
        ("DATA.TRAIN_CROP_NUM_TEMPORAL 2", "several clips a video"),
        ("DATA.INPUT_CHANNEL_NUM [1]", "three colours"),
        ("TEST.CHECKPOINT_TYPE caffe2 TEST.CHECKPOINT_FILE_PATH a.pkl", "another kind of file"),
        ("DEMO.ENABLE True", "demo"),
        # wrong keys and values
        ("DATA.SAMPLNG_RATE 4", r"unknown key DATA.SAMPLNG_RATE in .*; did you mean DATA.SAMPLING_RATE\?"),
        ("TRAIN.DATASETS kinetics", r"did you mean TRAIN.DATASET\?"),
        (
            "TRAIN.BATCH_SIZE many",
            "TRAIN.BATCH_SIZE in the command line is 'many'; expected a value such as 64",
        ),
        ("SOLVER.BASE_LR True", "SOLVER.BASE_LR .* expected a value such as 0.1"),
        ("SOLVER.STEPS [0,a]", "SOLVER.STEPS"),
        ("NUM_SHARDS 0", "NUM_SHARDS in the command line is 0; expected 1 to 1000000"),
        (f"SOLVER.BASE_LR {'9' * 400}", "SOLVER.BASE_LR .* expected a value such as 0.1"),
        ("SOLVER.LRS ['1']", "SOLVER.LRS .* expected a list of numbers"),
        ("SOLVER.MOMENTUM fast", "SOLVER.MOMENTUM in the command line is 'fast'; expected a number"),
        ("SOLVER.OPTIMIZING_METHOD adagrad SOLVER.MAX_EPOCH 0", "SOLVER.(OPTIMIZING_METHOD|MAX_EPOCH) is"),
        ("TEST.NUM_SPATIAL_CROPS 2", "TEST.NUM_SPATIAL_CROPS is 2; expected one of 1, 3"),
        ("AUG.ENABLE True AUG.AA_TYPE augmix-m3", "AUG.AA_TYPE .* is augmix-m3; expected RandAugment"),
    ],
)
def test_what_is_not_here_is_refused_in_one_line(overrides: str, message: str, load: Load) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$") as error:
        load(overrides)
    if "asks for" in str(error.value):
        assert "MODEL.ARCH c2d, i3d, slow" in str(error.value)


def test_blocks_of_a_resnet_101_have_their_kernels(load: Load) -> None:
    cfg, _ = load("RESNET.DEPTH 101 RESNET.NUM_BLOCK_TEMP_KERNEL [[3],[4],[23],[3]]")
    assert cfg.RESNET.DEPTH == 101
    load("RESNET.DEPTH 101 MODEL.ARCH c2d")  # none to miss
    load("RESNET.DEPTH 101 MODEL.MODEL_NAME PTVResNet")  # does not read the numbers


def test_files_of_both_languages_stay_apart(tmp_path: Path, slow: str) -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert not load_with_notes(str(path))[1], path
    (tmp_path / "mistyped.yaml").write_text(SLOW.replace("SAMPLING_RATE", "SAMPLING_RATES"))
    with pytest.raises(
        InputError, match=r"unknown key DATA.SAMPLING_RATES in .*; did you mean DATA.SAMPLING_R"
    ):
        load_config(str(tmp_path / "mistyped.yaml"))
    # PySlowFast takes the last of several values
    (tmp_path / "twice.yaml").write_text(SLOW.replace("  ARCH: slow\n", "  ARCH: slowfast\n  ARCH: c2d\n"))
    assert load_config(str(tmp_path / "twice.yaml")).RESNET.TEMPORAL_KERNELS == "c2d"
    (tmp_path / "ours.yaml").write_text("SOLVER:\n  BASE_LR: 0.1\n  BASE_LR: 0.2\n")
    with pytest.raises(InputError, match="BASE_LR comes twice"):
        load_config(str(tmp_path / "ours.yaml"))


def test_each_key_of_pyslowfast_is_in_one_table() -> None:
    tables = [set(SAME), set(TRANSLATED), set(NO_EFFECT)]
    assert len(set.union(*tables)) == sum(map(len, tables))


@pytest.mark.parametrize("text", [SLOW, SSV2, MULTIGRID])
def test_the_result_can_be_kept(text: str, load: Load, tmp_path: Path) -> None:
    """As a file of our keys, with those alone that differ from the defaults."""
    cfg, _ = load("SOLVER.BETAS (0.9,0.95)", text)
    kept = changed_yaml(cfg)
    (tmp_path / "kept.yaml").write_text(kept)
    again, notes = load_with_notes(str(tmp_path / "kept.yaml"))
    assert again == cfg
    assert not notes
    defaults = dict(leaves(default_config()))
    listed = dict(leaves(parse_yaml(kept, "")))
    assert listed == {key: value for key, value in leaves(cfg) if value != defaults[key]}
    assert "\n  ARCH: resnet\n" in kept
    if text == SSV2:
        assert "\n  STEPS: [0.0, 14.0, 18.0]\n" in kept
    assert changed_yaml(default_config()) == "{}\n"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_a_run_on_videos_tells_once(shapes: Path, slow: str, tmp_path: Path) -> None:
    """On two processes."""
    more = f"""TEST.BATCH_SIZE 16 DATA.PATH_TO_DATA_DIR {shapes} DATA.PATH_PREFIX {shapes}
    OUTPUT_DIR {tmp_path}/out"""
    output = run_together(2, "tools/run_net.py", "--cfg", slow, "--opts", *SHRUNK.split(), *more.split())
    for line in ("is a config of PySlowFast", "without effect here", "in every training: validation"):
        assert output.count(line) == (tmp_path / "out/stdout.log").read_text().count(line) == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["num_videos"], set(results["by_views"])) == (11, {"1x1", "1x3", "2x1", "2x3"})
    assert load_config(str(tmp_path / "out/config.yaml")).RESNET.TEMPORAL_KERNELS == "slow"


def test_a_multigrid_run(shapes: Path, slow: str, tmp_path: Path, run_net: RunNet) -> None:
    """Batches of four times as many clips and more, of fewer and smaller frames."""
    (tmp_path / "multigrid.yaml").write_text(MULTIGRID)
    more = f"""DATA.PATH_TO_DATA_DIR {shapes} DATA.PATH_PREFIX {shapes} OUTPUT_DIR {tmp_path}/out
    DATA.TRAIN_JITTER_SCALES [64,72] DATA.TRAIN_CROP_SIZE 64 TRAIN.BATCH_SIZE 1 SOLVER.MAX_EPOCH 3
    SOLVER.STEPS [0,1,2] TRAIN.EVAL_PERIOD 9 TEST.ENABLE False BN.USE_PRECISE_STATS False"""
    assert run_net(*SHRUNK.split(), *more.split(), cfg=str(tmp_path / "multigrid.yaml")) == 0
    log = (tmp_path / "out/stdout.log").read_text()
    assert "training is complete: 4 epochs" in log
    assert log.count("MULTIGRID.LONG_CYCLE True: validation follows") == 1


def test_a_run_on_frames(slow: str, tmp_path: Path, run_net: RunNet) -> None:
    """PySlowFast's files of Something-Something-v2."""
    rng = np.random.default_rng(0)
    for video in range(9):
        for number in range(1, 7):
            path = tmp_path / f"frames/{video}/{video}_{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 52, 3), np.uint8)).save(path)
    rows = "".join(f'{v} {v} {i} {v}/{v}_{i + 1:06d}.jpg ""\n' for v in range(9) for i in range(6))
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(f"original_vido_id video_id frame_id path labels\n{rows}")
    names = {f"Doing {i}": str(i) for i in range(8)}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(names))
    for split in ("train", "validation"):
        entries = [{"id": str(v), "template": f"Doing [{v % 8}]"} for v in range(9)]
        (tmp_path / f"something-something-v2-{split}.json").write_text(json.dumps(entries))
    (tmp_path / "ssv2.yaml").write_text(SSV2)
    more = f"""DATA.PATH_TO_DATA_DIR {tmp_path} DATA.PATH_PREFIX {tmp_path}/frames OUTPUT_DIR {tmp_path}/out
    SOLVER.STEPS [0] TRAIN.EVAL_PERIOD 1"""
    assert run_net(*SHRUNK.split(), *more.split(), cfg=str(tmp_path / "ssv2.yaml")) == 0
    log = (tmp_path / "out/stdout.log").read_text()
    assert log.count("TEST.NUM_ENSEMBLE_VIEWS is 1") == 1
    assert len(re.findall("json_stats", (tmp_path / "out/json_stats.log").read_text())) >= 3
    assert json.loads((tmp_path / "out/results.json").read_text())["num_videos"] == 9
