"""PySlowFast's configs: their keys and defaults, and what these are in the keys of this project.

Facts about PySlowFast are those of March 2026 (facebookresearch/SlowFast 287ec00): the defaults in
slowfast/config/defaults.py, and what its data sets, networks and optimizer make of each key. Some keys and
architectures of older releases are known too.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any, NamedTuple, TypeAlias

from .models.blocks import Bottleneck
from .models.resnet import DEPTHS, TEMPORAL_PATTERNS
from .runtime.errors import InputError
from .runtime.plain_yaml import literal

# Full key -> value, and the file, or the command line, that it stands in.
Given: TypeAlias = Mapping[str, tuple[Any, str]]

# Keys that every config of PySlowFast has some of, and none of ours.
MARKS = (
    "TRAIN.DATASET", "TEST.DATASET", "MODEL.MODEL_NAME", "DATA.INPUT_CHANNEL_NUM", "RESNET.TRANS_FUNC",
    "RESNET.NUM_BLOCK_TEMP_KERNEL",
)  # fmt: skip

# Keys with one name and meaning in both, and PySlowFast's defaults. One that does not exist here is told.
SAME: dict[str, Any] = {
    "OUTPUT_DIR": ".", "RNG_SEED": 1, "NUM_GPUS": 1, "LOG_PERIOD": 10,
    "TRAIN.ENABLE": True, "TRAIN.EVAL_PERIOD": 10, "TRAIN.CHECKPOINT_PERIOD": 10, "TRAIN.AUTO_RESUME": True,
    "TRAIN.CHECKPOINT_FILE_PATH": "", "TRAIN.MIXED_PRECISION": False, "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": 0.0,
    "TEST.ENABLE": True, "TEST.CHECKPOINT_FILE_PATH": "", "TEST.NUM_SPATIAL_CROPS": 3,
    "DATA.PATH_TO_DATA_DIR": "", "DATA.NUM_FRAMES": 8, "DATA.SAMPLING_RATE": 8,
    "DATA.MEAN": [0.45, 0.45, 0.45], "DATA.STD": [0.225, 0.225, 0.225],
    "DATA.TRAIN_JITTER_SCALES": [256, 320], "DATA.TRAIN_JITTER_SCALES_RELATIVE": [],
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": [], "DATA.TRAIN_CROP_SIZE": 224, "DATA.TEST_CROP_SIZE": 256,
    "DATA.INV_UNIFORM_SAMPLE": False, "DATA.RANDOM_FLIP": True, "DATA.TRAIN_JITTER_FPS": 0.0,
    "DATA.TRAIN_JITTER_MOTION_SHIFT": False, "DATA.TIME_DIFF_PROB": 0.0, "DATA.SSL_COLOR_JITTER": False,
    "DATA.LOADER_CHUNK_SIZE": 0, "DATA.DUMMY_LOAD": False,
    "AUG.NUM_SAMPLE": 1,
    "MIXUP.ENABLE": False, "MIXUP.ALPHA": 0.8, "MIXUP.CUTMIX_ALPHA": 1.0, "MIXUP.PROB": 1.0,
    "MIXUP.SWITCH_PROB": 0.5,
    "DATA_LOADER.NUM_WORKERS": 8,
    "MODEL.NUM_CLASSES": 400, "MODEL.DROPOUT_RATE": 0.5, "MODEL.ACT_CHECKPOINT": False,
    "MODEL.FROZEN_BN": False,
    "RESNET.DEPTH": 50, "RESNET.WIDTH_PER_GROUP": 64, "RESNET.ZERO_INIT_FINAL_CONV": False,
    "BN.USE_PRECISE_STATS": False, "BN.NUM_BATCHES_PRECISE": 200, "BN.WEIGHT_DECAY": 0.0, "BN.NUM_SPLITS": 1,
    "BN.MOMENTUM": 0.1,
    "SOLVER.LR_POLICY": "cosine", "SOLVER.MAX_EPOCH": 300, "SOLVER.MOMENTUM": 0.9, "SOLVER.DAMPENING": 0.0,
    "SOLVER.NESTEROV": True, "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.WARMUP_EPOCHS": 0.0, "SOLVER.GAMMA": 0.1,
    "SOLVER.COSINE_AFTER_WARMUP": False, "SOLVER.ZERO_WD_1D_PARAM": False, "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.BETAS": [0.9, 0.999],
    "MULTIGRID.LONG_CYCLE": False, "MULTIGRID.SHORT_CYCLE": False, "MULTIGRID.EPOCH_FACTOR": 1.5,
    "MULTIGRID.SHORT_CYCLE_FACTORS": [0.5, 0.5**0.5],
    "MULTIGRID.LONG_CYCLE_FACTORS": [[0.25, 0.5**0.5], [0.5, 0.5**0.5], [0.5, 1], [1, 1]],
    "MULTIGRID.BN_BASE_SIZE": 8,
}  # fmt: skip
# What they do otherwise here, where they are on in a training.
OTHERWISE = {
    "TRAIN.MIXED_PRECISION": "in float16 as there, and so is validation",
    "BN.USE_PRECISE_STATS": "before each validation, there before each checkpoint too",
    "MODEL.FROZEN_BN": "scales and shifts stand still too, there the statistics alone",
    "MULTIGRID.LONG_CYCLE": "validation follows TRAIN.EVAL_PERIOD, there MULTIGRID.EVAL_FREQ",
}
# What these begin with counts in training alone.
TRAINING = ("TRAIN.", "DATA.", "AUG.", "MIXUP.", "RESNET.", "BN.", "SOLVER.", "MULTIGRID.")
# Keys that the functions below translate, and PySlowFast's defaults.
TRANSLATED: dict[str, Any] = {
    "TASK": "", "NUM_SHARDS": 1,
    "TRAIN.DATASET": "kinetics", "TRAIN.BATCH_SIZE": 64, "TRAIN.CHECKPOINT_TYPE": "pytorch",
    "TRAIN.CHECKPOINT_INFLATE": False, "TRAIN.CHECKPOINT_EPOCH_RESET": False,
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN": [],
    "TEST.DATASET": "kinetics", "TEST.BATCH_SIZE": 8, "TEST.CHECKPOINT_TYPE": "pytorch",
    "TEST.NUM_ENSEMBLE_VIEWS": 10, "TEST.NUM_TEMPORAL_CLIPS": [],
    "DATA.PATH_PREFIX": "", "DATA.PATH_LABEL_SEPARATOR": " ", "DATA.TARGET_FPS": 30.0,
    "DATA.USE_OFFSET_SAMPLING": False, "DATA.DECODING_BACKEND": "torchvision", "DATA.MULTI_LABEL": False,
    "DATA.ENSEMBLE_METHOD": "sum", "DATA.REVERSE_INPUT_CHANNEL": False, "DATA.INPUT_CHANNEL_NUM": [3, 3],
    "DATA.TRAIN_CROP_NUM_TEMPORAL": 1, "DATA.TRAIN_CROP_NUM_SPATIAL": 1,
    "AUG.ENABLE": False, "AUG.AA_TYPE": "rand-m9-mstd0.5-inc1", "AUG.RE_PROB": 0.25, "AUG.RE_MODE": "pixel",
    "AUG.RE_COUNT": 1, "AUG.INTERPOLATION": "bicubic",
    "MIXUP.LABEL_SMOOTH_VALUE": 0.1,
    "MODEL.ARCH": "slowfast", "MODEL.MODEL_NAME": "SlowFast", "MODEL.LOSS_FUNC": "cross_entropy",
    "MODEL.HEAD_ACT": "softmax", "MODEL.DETACH_FINAL_FC": False, "MODEL.FP16_ALLREDUCE": False,
    "RESNET.TRANS_FUNC": "bottleneck_transform", "RESNET.NUM_GROUPS": 1, "RESNET.STRIDE_1X1": False,
    "RESNET.ZERO_INIT_FINAL_BN": False, "RESNET.NUM_BLOCK_TEMP_KERNEL": [[3], [4], [6], [3]],
    "RESNET.SPATIAL_STRIDES": [[1], [2], [2], [2]], "RESNET.SPATIAL_DILATIONS": [[1], [1], [1], [1]],
    "BN.NORM_TYPE": "batchnorm", "BN.NUM_SYNC_DEVICES": 1, "BN.GLOBAL_SYNC": False, "BN.EPSILON": 1e-5,
    "SOLVER.BASE_LR": 0.1, "SOLVER.WARMUP_START_LR": 0.01, "SOLVER.COSINE_END_LR": 0.0,
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": False, "SOLVER.STEPS": [], "SOLVER.LRS": [],
    "SOLVER.OPTIMIZING_METHOD": "sgd", "SOLVER.CLIP_GRAD_VAL": 0.0, "SOLVER.CLIP_GRAD_L2NORM": 0.0,
    "SOLVER.LARS_ON": False,
    "NONLOCAL.LOCATION": [[[]], [[]], [[]], [[]]],
    "DETECTION.ENABLE": False, "MASK.ENABLE": False, "DEMO.ENABLE": False,
}  # fmt: skip
# Keys without effect here: what happens anyway, what concerns images, other networks or other tasks, and what
# PySlowFast itself does not read.
NO_EFFECT = (
    "LOG_MODEL_INFO", "DIST_BACKEND", "SHARD_ID",
    "TRAIN.CHECKPOINT_IN_INIT", "TEST.SAVE_RESULTS_PATH",
    "DATA.TRAIN_PCA_EIGVAL", "DATA.TRAIN_PCA_EIGVEC", "DATA.PATH_TO_PRELOAD_IMDB", "DATA.DECODING_SHORT_SIZE",
    "DATA.LOADER_CHUNK_OVERALL_SIZE", "DATA.SKIP_ROWS", "DATA.COLOR_RND_GRAYSCALE", "DATA.SSL_MOCOV2_AUG",
    "DATA.SSL_COLOR_BRI_CON_SAT", "DATA.SSL_COLOR_HUE", "DATA.SSL_BLUR_SIGMA_MIN", "DATA.SSL_BLUR_SIGMA_MAX",
    "DATA.IN22K_TRAINVAL", "DATA.IN22k_VAL_IN1K", "DATA.CROP_SIZE",
    "AUG.COLOR_JITTER", "AUG.RE_SPLIT", "AUG.GEN_MASK_LOADER", "AUG.MASK_TUBE", "AUG.MASK_FRAMES",
    "AUG.MASK_WINDOW_SIZE", "AUG.MASK_RATIO", "AUG.MAX_MASK_PATCHES_PER_BLOCK",
    "DATA_LOADER.PIN_MEMORY", "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE",
    "MODEL.SINGLE_PATHWAY_ARCH", "MODEL.MULTI_PATHWAY_ARCH", "MODEL.DROPCONNECT_RATE", "MODEL.FC_INIT_STD",
    "RESNET.INPLACE_RELU",
    "SOLVER.STEP_SIZE", "SOLVER.WARMUP_FACTOR",
    "MULTIGRID.EVAL_FREQ", "MULTIGRID.LONG_CYCLE_SAMPLING_RATE", "MULTIGRID.DEFAULT_B", "MULTIGRID.DEFAULT_T",
    "MULTIGRID.DEFAULT_S",
)  # fmt: skip
SECTIONS_WITHOUT_EFFECT = (
    "NONLOCAL", "SLOWFAST", "X3D", "MVIT", "DETECTION", "AVA", "CONTRASTIVE", "MASK", "VIS_MASK", "DEMO",
    "TENSORBOARD", "BENCHMARK",
)  # fmt: skip
SUPPORTED = (
    "of PySlowFast's configs, those of ResNets with one pathway (MODEL.ARCH c2d, i3d, slow) for Kinetics and "
    "Something-Something-v2 run here"
)


class _Arch(NamedTuple):
    """RESNET.TEMPORAL_KERNELS, and RESNET.TEMPORAL_POOL, where 0 is the pool of these kernels."""

    kernels: str
    pool: int = 0


ARCHITECTURES = {
    "c2d": _Arch("c2d"),
    "i3d": _Arch("i3d"),
    "slow": _Arch("slow"),
    "2d": _Arch("c2d", pool=1),
    "slow_c2d": _Arch("c2d", pool=1),
    "slow_i3d": _Arch("i3d", pool=1),
    "slowonly": _Arch("slow"),  # older names
    "c2d_nopool": _Arch("c2d", pool=1),
}


class _Dataset(NamedTuple):
    """DATA.LIST_FORMAT, and whether PyTorchVideo's loaders read it, whose test clips and crops differ."""

    list_format: str
    pytorchvideo: bool = False


DATASETS = {
    "kinetics": _Dataset("videos"),
    "ssv2": _Dataset("frames"),
    "ptvkinetics": _Dataset("videos", pytorchvideo=True),
    "ptvssv2": _Dataset("frames", pytorchvideo=True),
}


class _Theirs:
    """The values of a PySlowFast config: those given, else PySlowFast's defaults."""

    def __init__(self, given: Given, path: str) -> None:
        self.given = dict(given)
        self.path = path
        if "MODEL.MODEL_NAME" not in given and self["MODEL.ARCH"] in ARCHITECTURES:
            self.given["MODEL.MODEL_NAME"] = "ResNet", path  # older releases chose it by MODEL.ARCH

    def __getitem__(self, key: str) -> Any:
        """Return a value, of the type of its default. Raises InputError."""
        default = SAME[key] if key in SAME else TRANSLATED[key]
        value, source = self.given.get(key, (None, ""))
        if isinstance(value, str) and not isinstance(default, str):
            value = literal(value)
        if value is None:  # not given, or `PATH_PREFIX:` without a value
            return default
        if isinstance(value, tuple):
            value = list(value)
        if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
            value = float(value)
        if type(value) is not type(default):
            raise InputError(f"{key} in {source} is {value!r}; expected a value such as {default!r}")
        return value

    def numbers(self, key: str) -> list[int | float]:
        """Return a list of numbers. Raises InputError."""
        values = self[key]
        if not all(type(value) in (int, float) for value in values):
            raise InputError(f"{key} in {self.source(key)} is {values!r}; expected a list of numbers")
        return list(values)

    def source(self, key: str) -> str:
        return self.given[key][1] if key in self.given else f"{self.path}, by default"

    @property
    def machines(self) -> int:
        """The number of machines. Raises InputError."""
        number = self["NUM_SHARDS"]
        if not 1 <= number <= 1000000:
            raise InputError(f"NUM_SHARDS in {self.source('NUM_SHARDS')} is {number}; expected 1 to 1000000")
        return int(number)

    @property
    def dataset(self) -> _Dataset:
        return DATASETS[self["TRAIN.DATASET" if self["TRAIN.ENABLE"] else "TEST.DATASET"].lower()]


class _Ours:
    """What a translation writes: values of our keys, and what to tell."""

    def __init__(self, known: Iterable[str], path: str) -> None:
        self.known = set(known)
        self.values: dict[str, tuple[Any, str]] = {}
        self.notes: list[str] = []
        self._path = path

    def set(self, values: Mapping[str, Any]) -> None:
        self.values.update({key: (value, self._path) for key, value in values.items()})

    def pass_on(self, key: str, value: Any, neutral: Any) -> None:
        """Set a key if it exists here; if it does not, and the value is not the neutral one, tell."""
        if key in self.known:
            self.values[key] = value, self._path
        elif value != neutral:
            self.tell(f"{key} {value} has no counterpart here")

    def tell(self, text: str) -> None:
        self.notes.append(text)


def is_slowfast(keys: Iterable[str]) -> bool:
    """Whether a config with these keys is one of PySlowFast."""
    return any(key in MARKS for key in keys)


def translate(
    given: Given, known: Mapping[str, Any], path: str
) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Return a config of PySlowFast in our keys, and what differs here, a line each.

    `given`: all keys of the file and of the command line; those that only this project has are taken as they
    are. `known`: our keys with their defaults. `path`: the file, for messages. Raises InputError for an
    unknown key, a wrong type, and what cannot be done here.
    """
    theirs, ours = _Theirs(given, path), _Ours(known, path)
    key, what = next(_not_here(theirs), ("", ""))
    if key not in given:  # else keys of another network may be unknown too
        _check_keys(given, known)
    if what:
        raise InputError(
            f"{key} {theirs[key]} in {theirs.source(key)} asks for {what}, which is not here; {SUPPORTED}"
        )
    ours.tell(f"{path} is a config of PySlowFast and runs in its meaning, except for what follows")
    _same(theirs, ours)
    for part in (_lists, _clips, _network, _testing):
        part(theirs, ours)
    if theirs["TRAIN.ENABLE"]:
        for part in (_training, _schedule, _augmentation):
            part(theirs, ours)
    without = sorted({_shown(key) for key in given if _is_without_effect(key)})
    if without:
        ours.tell(f"without effect here: {', '.join(without)}")
    ours_alone = {key: value for key, value in given.items() if not _is_theirs(key)}
    return ours.values | ours_alone, ours.notes


def _is_without_effect(key: str) -> bool:
    section = key.partition(".")[0]
    return key in NO_EFFECT or (section in SECTIONS_WITHOUT_EFFECT and key not in TRANSLATED)


def _is_theirs(key: str) -> bool:
    return key in SAME or key in TRANSLATED or _is_without_effect(key)


def _shown(key: str) -> str:
    section = key.partition(".")[0]
    return f"{section}.*" if section in SECTIONS_WITHOUT_EFFECT else key


def _check_keys(given: Given, known: Mapping[str, Any]) -> None:
    for key, (_, source) in given.items():
        if key not in known and not _is_theirs(key):
            nearest = difflib.get_close_matches(
                key, {*SAME, *TRANSLATED, *NO_EFFECT, *known}, n=1, cutoff=0.0
            )[0]
            raise InputError(
                f"unknown key {key} in {source}, a config of PySlowFast; did you mean {nearest}?"
            )


def _not_here(theirs: _Theirs) -> Iterator[tuple[str, str]]:
    """Yield the keys that ask for what this project does not have, and what that is."""
    if "ssl" in theirs["TASK"]:
        yield "TASK", "self-supervision (TASK '' trains from labels)"
    for key, what in {
        "MASK.ENABLE": "masked pretraining",
        "DETECTION.ENABLE": "actions in boxes, as in AVA",
        "DEMO.ENABLE": "PySlowFast's demo",
        "DATA.MULTI_LABEL": "several labels a video as PySlowFast reads them (ours: docs/training.md)",
        "MODEL.DETACH_FINAL_FC": "training the classifier alone",
        "RESNET.STRIDE_1X1": "strides in the 1x1 convolutions",
        "SOLVER.LARS_ON": "the optimizer LARS",
    }.items():
        if theirs[key]:
            yield key, what
    if theirs["MODEL.ARCH"] not in ARCHITECTURES:
        yield "MODEL.ARCH", "two pathways" if theirs["MODEL.ARCH"] == "slowfast" else "another network"
    if theirs["MODEL.MODEL_NAME"] not in ("ResNet", "PTVResNet"):
        yield "MODEL.MODEL_NAME", "another network"
    if re.search(r"\d", str(theirs["NONLOCAL.LOCATION"])):
        yield "NONLOCAL.LOCATION", "non-local blocks"
    yield from _other_data(theirs)
    yield from _other_resnets(theirs)
    if theirs["MODEL.LOSS_FUNC"] not in ("cross_entropy", "soft_cross_entropy"):
        yield "MODEL.LOSS_FUNC", "another loss than cross-entropy"
    if theirs["MODEL.HEAD_ACT"] != "softmax":
        yield "MODEL.HEAD_ACT", "another output than softmax"


def _other_data(theirs: _Theirs) -> Iterator[tuple[str, str]]:
    parts = [part for part in ("TRAIN", "TEST") if theirs[f"{part}.ENABLE"]]
    for part in parts:
        if theirs[f"{part}.DATASET"].lower() not in DATASETS:
            yield f"{part}.DATASET", "another kind of data"
        if theirs[f"{part}.CHECKPOINT_TYPE"] != "pytorch" and theirs[f"{part}.CHECKPOINT_FILE_PATH"]:
            yield (
                f"{part}.CHECKPOINT_TYPE",
                f"another kind of file than {part}.CHECKPOINT_FILE_PATH of PyTorch",
            )
    if len({theirs[f"{part}.DATASET"].lower() for part in parts}) > 1:
        yield "TEST.DATASET", f"other data than TRAIN.DATASET {theirs['TRAIN.DATASET']}"
    for key in ("DATA.TRAIN_CROP_NUM_TEMPORAL", "DATA.TRAIN_CROP_NUM_SPATIAL"):
        if theirs[key] != 1:
            yield key, "several clips a video in training, other than by AUG.NUM_SAMPLE"
    if any(channels != 3 for channels in theirs["DATA.INPUT_CHANNEL_NUM"]):
        yield "DATA.INPUT_CHANNEL_NUM", "another input than three colours"


def _other_resnets(theirs: _Theirs) -> Iterator[tuple[str, str]]:
    for key, what in {
        "RESNET.TRANS_FUNC": "other blocks than bottlenecks",
        "RESNET.NUM_GROUPS": "ResNeXt",
        "RESNET.SPATIAL_STRIDES": "other strides",
        "RESNET.SPATIAL_DILATIONS": "dilated convolutions",
        "BN.EPSILON": "another epsilon of batch normalization",
    }.items():
        if theirs[key] != TRANSLATED[key]:
            yield key, what
    depth = theirs["RESNET.DEPTH"]
    block, num_blocks = DEPTHS.get(depth, (Bottleneck, (0, 0, 0, 0)))
    if block is not Bottleneck:
        yield "RESNET.DEPTH", f"bottlenecks in a network of {depth} layers"
    limits = theirs["RESNET.NUM_BLOCK_TEMP_KERNEL"]
    if len(limits) != 4 or not all(isinstance(n, list) and len(n) == 1 and type(n[0]) is int for n in limits):
        yield "RESNET.NUM_BLOCK_TEMP_KERNEL", "not a number for each of four stages"
    pattern = TEMPORAL_PATTERNS[ARCHITECTURES[theirs["MODEL.ARCH"]].kernels]
    for kernels, blocks, (limit,) in zip(pattern.kernels, num_blocks, limits, strict=True):
        if theirs["MODEL.MODEL_NAME"] == "ResNet" and any(
            size > 1 for size in islice(cycle(kernels), limit, blocks)
        ):
            yield "RESNET.NUM_BLOCK_TEMP_KERNEL", f"blocks without temporal kernels in a ResNet-{depth}"


def _same(theirs: _Theirs, ours: _Ours) -> None:
    for key, default in SAME.items():
        value, source = theirs.given.get(key, (default, theirs.path))
        if key.startswith("MULTIGRID.") and key in ours.known and key not in theirs.given:
            continue  # these defaults are the same
        if key in ours.known:
            ours.values[key] = (default if value is None else value), source
            if key in OTHERWISE and theirs["TRAIN.ENABLE"] and theirs[key]:
                ours.tell(f"{key} {theirs[key]}: {OTHERWISE[key]}")
        elif theirs["TRAIN.ENABLE"] or not key.startswith(TRAINING):
            ours.pass_on(key, theirs[key], default)


def _lists(theirs: _Theirs, ours: _Ours) -> None:
    prefix = theirs["DATA.PATH_PREFIX"]
    ours.set(
        {
            "DATA.LIST_FORMAT": theirs.dataset.list_format,
            # relative paths start at the working directory there
            "DATA.PATH_PREFIX": prefix if "://" in prefix else os.path.abspath(prefix),
        }
    )
    is_bgr = theirs["DATA.REVERSE_INPUT_CHANNEL"]
    if theirs.dataset.list_format == "frames":
        is_bgr = not is_bgr
        ours.set({"DATA.TEST_LIST": "val.csv"})
        if theirs["DATA.RANDOM_FLIP"] and theirs["TRAIN.ENABLE"]:
            ours.tell("DATA.RANDOM_FLIP True: mirrored clips exchange the labels of left and right")
    else:
        ours.set({"DATA.PATH_LABEL_SEPARATOR": theirs["DATA.PATH_LABEL_SEPARATOR"]})
        backend = theirs["DATA.DECODING_BACKEND"]
        if backend == "torchvision":
            ours.tell("DATA.DECODING_BACKEND torchvision: PyAV decodes, at full size")
        ours.set({"DATA.DECODING_BACKEND": "pyav" if backend == "torchvision" else backend})
    if is_bgr:
        ours.tell(
            f"DATA.REVERSE_INPUT_CHANNEL {theirs['DATA.REVERSE_INPUT_CHANNEL']}: the network sees RGB, there "
            "BGR, which weights that were trained there expect"
        )


def _clips(theirs: _Theirs, ours: _Ours) -> None:
    if theirs.dataset.list_format == "frames":
        ours.set({"DATA.SAMPLER": "segments"})
        return
    offset = theirs["DATA.USE_OFFSET_SAMPLING"]
    if theirs.dataset.pytorchvideo:
        offset = max(_test_clips(theirs)) > 1  # flush with both ends; a single clip is the first
    ours.set(
        {
            "DATA.SAMPLER": "slowfast",
            "DATA.TARGET_FPS": theirs["DATA.TARGET_FPS"],
            "DATA.USE_OFFSET_SAMPLING": offset,
        }
    )


def _network(theirs: _Theirs, ours: _Ours) -> None:
    arch = ARCHITECTURES[theirs["MODEL.ARCH"]]
    ours.set(
        {
            "MODEL.ARCH": "resnet",
            "RESNET.TEMPORAL_KERNELS": arch.kernels,
            "RESNET.TEMPORAL_POOL": arch.pool,
            "RESNET.ZERO_INIT_RESIDUAL": theirs["RESNET.ZERO_INIT_FINAL_BN"],
            # with the short cycle, it averages the features
            "MODEL.HEAD_PER_POSITION": not theirs["MULTIGRID.SHORT_CYCLE"],
        }
    )


def _test_clips(theirs: _Theirs) -> list[Any]:
    """Return the numbers of clips per video; each is a test there."""
    clips = theirs["TEST.NUM_ENSEMBLE_VIEWS"]
    return theirs.numbers("TEST.NUM_TEMPORAL_CLIPS") or ([1, 3, 5, 7, 10] if clips == -1 else [clips])


def _testing(theirs: _Theirs, ours: _Ours) -> None:
    dataset, clips = theirs.dataset, _test_clips(theirs)
    if dataset.list_format == "frames":
        if theirs["TEST.ENABLE"] and clips != [1]:
            ours.tell("TEST.NUM_ENSEMBLE_VIEWS is 1: there, all clips of a video are the same")
        clips = [1]
    elif theirs["TEST.ENABLE"] and len(clips) > 1:
        ours.tell(
            f"{len(clips)} tests follow each other there, with {', '.join(map(str, clips))} clips a video; "
            f"here one has {max(clips)}, from whose stored views tools/aggregate.py computes smaller ones"
        )
    ours.set(
        {
            "TEST.NUM_ENSEMBLE_VIEWS": max(clips),
            "TEST.BATCH_SIZE": max(1, theirs["TEST.BATCH_SIZE"] // max(1, theirs["NUM_GPUS"])),
        }
    )
    is_one_crop = theirs["TEST.NUM_SPATIAL_CROPS"] == 1
    if dataset.list_format == "videos" and (is_one_crop or dataset.pytorchvideo):
        smallest = theirs.numbers("DATA.TRAIN_JITTER_SCALES")[:1]
        ours.set(
            {"DATA.TEST_SHORT_SIDE": max([0, *(n for n in smallest if n > theirs["DATA.TEST_CROP_SIZE"])])}
        )
    if not theirs["TEST.ENABLE"]:
        return
    if is_one_crop and (dataset.list_format == "frames" or dataset.pytorchvideo):
        ours.tell("TEST.NUM_SPATIAL_CROPS 1: the crop is the centre; there it is the left or upper one")
    if theirs["DATA.ENSEMBLE_METHOD"] != "sum":
        ours.tell(
            f"DATA.ENSEMBLE_METHOD {theirs['DATA.ENSEMBLE_METHOD']}: results are of averaged views; "
            "tools/aggregate.py --pool max takes the largest probabilities"
        )


def _training(theirs: _Theirs, ours: _Ours) -> None:
    machines, samples = theirs.machines, theirs["AUG.NUM_SAMPLE"]
    size = theirs["TRAIN.BATCH_SIZE"] * machines * samples
    ours.set({"TRAIN.BATCH_SIZE": size, "TRAIN.CHECKPOINT_INFLATE": "average"})
    if size != theirs["TRAIN.BATCH_SIZE"]:
        ours.tell(
            f"TRAIN.BATCH_SIZE {theirs['TRAIN.BATCH_SIZE']} is {size} here, which counts all machines "
            f"(NUM_SHARDS {machines}) and samples (AUG.NUM_SAMPLE {samples})"
        )
    if machines > 1:
        ours.tell(f"NUM_SHARDS {machines}: start torchrun on each machine, with NUM_GPUS processes")
    if theirs["TRAIN.CHECKPOINT_FILE_PATH"]:
        if not theirs["TRAIN.CHECKPOINT_EPOCH_RESET"]:
            ours.tell("TRAIN.CHECKPOINT_FILE_PATH: the weights are read, and not the epoch and the optimizer")
        if theirs["TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN"]:
            ours.tell("TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN: tensors are recognized by the names in the file")
    if theirs["TRAIN.MIXED_PRECISION"] and "TRAIN.HALF_DTYPE" in ours.known:
        ours.set({"TRAIN.HALF_DTYPE": "float16"})
    if theirs["MODEL.FP16_ALLREDUCE"] and "TRAIN.BF16_ALLREDUCE" in ours.known:
        ours.set({"TRAIN.BF16_ALLREDUCE": True})
        ours.tell("MODEL.FP16_ALLREDUCE True: gradients are averaged in bfloat16 (TRAIN.BF16_ALLREDUCE)")
    # long cycles choose the normalization themselves
    norm = "batchnorm" if theirs["MULTIGRID.LONG_CYCLE"] else theirs["BN.NORM_TYPE"].removesuffix("_apex")
    ours.pass_on("BN.NORM_TYPE", norm, "batchnorm")
    if norm == "sync_batchnorm":
        devices = 0 if theirs["BN.GLOBAL_SYNC"] else theirs["BN.NUM_SYNC_DEVICES"]
        ours.pass_on("BN.NUM_SYNC_DEVICES", devices, 1)
    ours.tell(
        "in every training: validation is on the centre view of each video, there on a random one; the "
        "latest TRAIN.CHECKPOINTS_KEPT checkpoints and the best are kept, there all; the classifier starts "
        "from PyTorch's initialization, there from a normal one (MODEL.FC_INIT_STD)"
    )


def _schedule(theirs: _Theirs, ours: _Ours) -> None:
    scale = theirs.machines if theirs["SOLVER.BASE_LR_SCALE_NUM_SHARDS"] else 1
    steps = theirs.numbers("SOLVER.STEPS")
    if not theirs["MULTIGRID.LONG_CYCLE"]:  # else steps from the last epoch on are never reached
        steps = [step for step in steps if step < theirs["SOLVER.MAX_EPOCH"]]
    ours.set(
        {
            "SOLVER.BASE_LR": theirs["SOLVER.BASE_LR"] * scale,
            "SOLVER.WARMUP_START_LR": theirs["SOLVER.WARMUP_START_LR"] * scale,
            "SOLVER.COSINE_END_LR": theirs["SOLVER.COSINE_END_LR"] * scale,
            "SOLVER.STEPS": steps,
            "SOLVER.LRS": theirs.numbers("SOLVER.LRS")[: len(steps)],
        }
    )
    method = theirs["SOLVER.OPTIMIZING_METHOD"].removeprefix("mt_")
    ours.pass_on("SOLVER.OPTIMIZING_METHOD", method, "sgd")
    largest = theirs["SOLVER.CLIP_GRAD_VAL"]  # goes before the norm
    ours.pass_on("SOLVER.CLIP_GRAD_VAL", largest, 0.0)
    ours.pass_on("SOLVER.CLIP_GRAD_L2NORM", 0.0 if largest else theirs["SOLVER.CLIP_GRAD_L2NORM"], 0.0)


def _augmentation(theirs: _Theirs, ours: _Ours) -> None:
    is_on, kind = theirs["AUG.ENABLE"], theirs["AUG.AA_TYPE"]
    if theirs.dataset.pytorchvideo:
        for key in ("AUG.ENABLE", "DATA.INV_UNIFORM_SAMPLE", "DATA.TRAIN_JITTER_SCALES_RELATIVE"):
            if theirs[key]:
                ours.tell(f"{key} {theirs[key]}: takes effect, while PyTorchVideo's loaders do not read it")
    magnitude = 0
    if is_on and kind:
        match = re.search(r"-m(\d+)", kind)
        if not kind.startswith("rand"):
            raise InputError(
                f"AUG.AA_TYPE in {theirs.source('AUG.AA_TYPE')} is {kind}; expected RandAugment, as in "
                "rand-m9-mstd0.5-inc1, or nothing"
            )
        # of 10 there, of 30 here: m9 rotates by 27 degrees in both
        magnitude = min(30, 3 * int(match[1])) if match else 30
        ours.tell(
            f"AUG.AA_TYPE {kind}: RandAugment of the same magnitude (AUG.RAND_MAGNITUDE {magnitude} of 30), "
            "with two operations that always apply; there each applies with probability 0.5, and `n` and "
            "`mstd` count"
        )
    ours.set(
        {
            "AUG.RAND_MAGNITUDE": magnitude,
            "AUG.RE_PROB": theirs["AUG.RE_PROB"] if is_on else 0.0,
            # smoothing is a part of mixing there
            "MIXUP.LABEL_SMOOTH_VALUE": theirs["MIXUP.LABEL_SMOOTH_VALUE"] if theirs["MIXUP.ENABLE"] else 0.0,
        }
    )
    for key in ("AUG.RE_MODE", "AUG.RE_COUNT", "AUG.INTERPOLATION"):
        if is_on:
            ours.pass_on(key, theirs[key], TRANSLATED[key])
