"""What a changed key means for a resumed run and for a test of trained weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from .config import Config, leaves, parse_config
from .runtime.errors import InputError

Changes: TypeAlias = dict[str, tuple[Any, Any]]

# Each key of the config is in exactly one of the next four.
# Any change of these is fine.
FITS = (
    "OUTPUT_DIR", "NUM_GPUS", "LOG_PERIOD", "ALLOW_TF32", "WANDB.ENABLE", "WANDB.PROJECT",
    "TRAIN.ENABLE", "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD", "TRAIN.CHECKPOINTS_KEPT",
    "TRAIN.CHECKPOINT_MINUTES", "TRAIN.AUTO_RESUME", "TRAIN.COMPILE", "TRAIN.BF16_ALLREDUCE",
    "TRAIN.PROFILE_STEPS",
    "TEST.ENABLE", "TEST.EMA", "TEST.BATCH_SIZE", "TEST.CHECKPOINT_FILE_PATH", "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS", "TEST.TEMPORAL_CHECKS", "TEST.STORED_VIEWS",
    "TEST.MIXED_PRECISION", "TEST.FOLD_BN", "TEST.COMPILE",
    "DATA.PATH_TO_DATA_DIR", "DATA.VAL_LIST", "DATA.TEST_LIST", "DATA.PATH_PREFIX", "DATA.FRAME_NAMES",
    "DATA.PATH_LABEL_SEPARATOR", "DATA.MAX_BAD_FRACTION", "DATA.TEST_CROP_SIZE", "DATA.TEST_SHORT_SIDE",
    "DATA_LOADER.NUM_WORKERS", "DATA_LOADER.TIMEOUT",
    "MODEL.ACT_CHECKPOINT",
)  # fmt: skip
# The new value takes effect, and the log says so.
TAKES_EFFECT = (
    "SOLVER.BASE_LR", "SOLVER.LR_POLICY", "SOLVER.COSINE_END_LR", "SOLVER.STEPS", "SOLVER.LRS",
    "SOLVER.MAX_EPOCH", "SOLVER.WARMUP_EPOCHS", "SOLVER.WARMUP_START_LR", "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY", "BN.WEIGHT_DECAY",
    "DATA.DECODING_BACKEND", "DATA.USE_OFFSET_SAMPLING", "MODEL.HEAD_PER_POSITION",
    "TRAIN.MIXED_PRECISION", "TRAIN.HALF_DTYPE", "TRAIN.HALF_PROBLEMS",
    "BN.NORM_TYPE", "BN.NUM_SPLITS", "BN.NUM_SYNC_DEVICES",
    "SOLVER.GAMMA", "MULTIGRID.BN_BASE_SIZE",
    "SOLVER.BETAS", "SOLVER.REFERENCE_BATCH_SIZE", "SOLVER.COSINE_AFTER_WARMUP", "SOLVER.CLIP_GRAD_VAL",
    "SOLVER.CLIP_GRAD_L2NORM", "SOLVER.SKIP_NONFINITE_STEPS", "TRAIN.ACCUMULATION", "BN.USE_PRECISE_STATS",
    "BN.NUM_BATCHES_PRECISE",
)  # fmt: skip
# The same, but only between epochs; within one, records would be skipped or seen twice. The list is compared
# by its fingerprint and may move.
BETWEEN_EPOCHS = ("TRAIN.BATCH_SIZE", "DATA.TRAIN_LIST", "DATA.LIST_FORMAT", "MULTIGRID.EPOCH_FACTOR")
# With MULTIGRID.LONG_CYCLE, the size of batches depends on these too.
BETWEEN_EPOCHS_OF_CYCLES = ("SOLVER.STEPS", "SOLVER.MAX_EPOCH")
# A change is refused: it means another network, other samples or another start. Class names are compared, not
# the path of their file; of the initial weights, only the file name.
ANOTHER_RUN = (
    "SOLVER.OPTIMIZING_METHOD", "SOLVER.LAYER_DECAY", "SOLVER.ZERO_WD_1D_PARAM", "SOLVER.EMA_DECAY",
    "MODEL.FROZEN_STAGES", "MODEL.FROZEN_BN",
    "MULTIGRID.LONG_CYCLE", "MULTIGRID.LONG_CYCLE_FACTORS", "MULTIGRID.SHORT_CYCLE",
    "MULTIGRID.SHORT_CYCLE_FACTORS",
    "RNG_SEED", "TRAIN.CHECKPOINT_FILE_PATH", "TRAIN.CHECKPOINT_INFLATE",
    "DATA.CLASS_NAMES", "DATA.MULTI_LABEL",
    "DATA.SAMPLER", "DATA.NUM_FRAMES", "DATA.SAMPLING_RATE", "DATA.TRAIN_JITTER_RATE",
    "DATA.TARGET_FPS", "DATA.MEAN", "DATA.STD", "DATA.TRAIN_JITTER_SCALES", "DATA.INV_UNIFORM_SAMPLE",
    "DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE", "DATA.TRAIN_CROP_SIZE",
    "DATA.TRAIN_PADDING", "DATA.RANDOM_FLIP",
    "AUG.NUM_SAMPLE", "AUG.COLOR_JITTER", "AUG.RAND_MAGNITUDE", "AUG.RE_PROB",
    "MIXUP.ENABLE", "MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA", "MIXUP.PROB", "MIXUP.SWITCH_PROB",
    "MIXUP.LABEL_SMOOTH_VALUE",
    "MODEL.ARCH", "MODEL.DIMS", "MODEL.NUM_CLASSES", "MODEL.DROPOUT_RATE",
    "RESNET.STAGES", "RESNET.DEPTH", "RESNET.WIDTH_PER_GROUP", "RESNET.TEMPORAL_KERNELS",
    "RESNET.TEMPORAL_STRIDES", "RESNET.TEMPORAL_POOL", "RESNET.STEM_TEMPORAL_KERNEL",
    "RESNET.STEM_TEMPORAL_STRIDE", "RESNET.STEM_POOL", "RESNET.SHORTCUT_TEMPORAL_KERNEL",
    "RESNET.RECTIFY_IDENTITY", "RESNET.ZERO_INIT_RESIDUAL",
)  # fmt: skip

# Trained weights are not tested with other values of these: the network would compute something else.
OTHER_NETWORK = (
    "MODEL.ARCH", "MODEL.DIMS",
    "RESNET.STAGES", "RESNET.DEPTH", "RESNET.WIDTH_PER_GROUP", "RESNET.TEMPORAL_KERNELS",
    "RESNET.TEMPORAL_STRIDES", "RESNET.TEMPORAL_POOL", "RESNET.STEM_TEMPORAL_KERNEL",
    "RESNET.STEM_TEMPORAL_STRIDE", "RESNET.STEM_POOL", "RESNET.SHORTCUT_TEMPORAL_KERNEL",
    "RESNET.RECTIFY_IDENTITY",
    "DATA.MEAN", "DATA.STD", "DATA.MULTI_LABEL",
)  # fmt: skip
# They are tested with other values of these, after a warning.
OTHER_CLIPS = (
    "DATA.SAMPLER", "DATA.NUM_FRAMES", "DATA.SAMPLING_RATE", "DATA.TARGET_FPS", "MODEL.HEAD_PER_POSITION",
)  # fmt: skip
# The results of a test depend on these, besides weights and videos.
TESTED = (
    *OTHER_NETWORK, *OTHER_CLIPS,
    "RNG_SEED", "MODEL.NUM_CLASSES", "ALLOW_TF32",
    "DATA.USE_OFFSET_SAMPLING", "DATA.DECODING_BACKEND", "DATA.LIST_FORMAT", "DATA.FRAME_NAMES",
    "DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE", "DATA.TEST_SHORT_SIDE",
    "TEST.BATCH_SIZE", "TEST.NUM_ENSEMBLE_VIEWS", "TEST.NUM_SPATIAL_CROPS", "TEST.TEMPORAL_CHECKS",
    "TEST.MIXED_PRECISION", "TEST.FOLD_BN", "TEST.COMPILE",
)  # fmt: skip


def tested_values(cfg: Config) -> dict[str, Any]:
    """Return the keys that the results of a test depend on, with their values."""
    return {key: value for key, value in leaves(cfg) if key in TESTED}


def decides(key: str) -> str:
    """Return what a key decides, as text: the training, the test, or neither but paths, speed, rounding,
    reports and which weights are tested.
    """
    parts = {"training": key not in FITS, "test": key in TESTED}
    return " and ".join(part for part, is_one in parts.items() if is_one)


def check_going_on(cfg: Config, state: Mapping[str, Any], contents: Mapping[str, Any], source: str) -> str:
    """Return the changes that take effect when a run resumes from a checkpoint, as text.

    `contents`: `class_names`, and `train_list`, the fingerprint of the list, which older checkpoints lack.
    Raises InputError if a change would make it another run.
    """
    changes = _changes(parse_config(state["cfg"]) or cfg, cfg)
    for key, name in {"DATA.TRAIN_LIST": "train_list", "DATA.CLASS_NAMES": "class_names"}.items():
        changes[key] = (state.get(name, contents[name]), contents[name])
    changes = {key: (then, now) for key, (then, now) in changes.items() if then != now}
    refused = _text(changes, ANOTHER_RUN)
    between = (*BETWEEN_EPOCHS, *(BETWEEN_EPOCHS_OF_CYCLES if cfg.MULTIGRID.LONG_CYCLE else ()))
    if not refused and state["position"]["step"] and (refused := _text(changes, between)):
        refused += ", which can change only between two epochs"
    if refused:
        raise InputError(
            f"cannot resume from {source}: {refused}; restore it, name another "
            "OUTPUT_DIR to train again, or set TRAIN.ENABLE False to only test"
        )
    return _text(changes, (*TAKES_EFFECT, *BETWEEN_EPOCHS))


def check_testing(cfg: Config, trained: object, source: str) -> str:
    """Return how the clips of a test differ from those of the training, as text.

    `trained`: the value of `cfg` in the file of weights; configs of other projects are ignored. Raises
    InputError if the network would compute something else than in training.
    """
    changes = _changes(parse_config(trained) or cfg, cfg)
    for key in OTHER_NETWORK:
        if key in changes:
            then, now = changes[key]
            raise InputError(f"{source} was trained with {key} {then}, but it is {now}; set it to {then}")
    windows = ("DATA.TRAIN_CROP_SIZE",) if cfg.MODEL.HEAD_PER_POSITION else ()
    return _text(changes, (*OTHER_CLIPS, *windows))


def _changes(then: Config, now: Config) -> Changes:
    """Return the keys that differ, with both values. Files of weights may have moved."""
    before = dict(leaves(then))
    changes = {key: (before[key], value) for key, value in leaves(now) if before[key] != value}
    start = "TRAIN.CHECKPOINT_FILE_PATH"
    if start in changes and len({os.path.basename(path) for path in changes[start]}) == 1:
        del changes[start]
    return changes


def _text(changes: Changes, keys: Collection[str]) -> str:
    """Describe the changes of some keys."""
    return ", ".join(
        f"{key} was {_shown(then, now)} and is {_shown(now, then)}"
        for key, (then, now) in changes.items()
        if key in keys
    )


def _shown(value: Any, other: Any) -> str:
    """Return a value as text; of a long list only the first item that differs."""
    if isinstance(value, list) and len(value) > 4:
        return next(
            (f"{item!r} at place {i}" for i, item in enumerate(value) if other[i : i + 1] != [item]),
            f"{len(value)} long",
        )
    return repr(value) if isinstance(value, str) else str(value)
