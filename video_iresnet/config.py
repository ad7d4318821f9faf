"""The default config; loading, overriding and validation.

Keys have PySlowFast's names if the meaning is the same. Comments say where the meaning differs.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fvcore.common.config import CfgNode

from .models import ARCHITECTURES, DEPTHS
from .models.inflate import METHODS
from .models.norm import NORMS
from .models.resnet import GROUPED_DEPTHS, temporal_pattern
from .runtime.errors import InputError
from .runtime.plain_yaml import dump_yaml, literal, parse_yaml
from .runtime.ranges import join
from .runtime.root import ROOT
from .runtime.storage import open_text, path_manager
from .slowfast import is_slowfast, translate

Config: TypeAlias = CfgNode
COMMAND_LINE = "the command line"
# Text keys that may also be lists.
NAME_OR_LIST = ("RESNET.TEMPORAL_KERNELS",)
# Keys that are checked only if there is training, except those that testing reads too.
TRAINING = ("TRAIN.", "DATA.TRAIN_JITTER_", "AUG.", "MIXUP.", "SOLVER.", "BN.", "MULTIGRID.")
TESTING_TOO = ("TRAIN.HALF_DTYPE", "TRAIN.HALF_PROBLEMS")
# The interval of each key, or of the items of its list.
RANGES = {
    "[0, 1]": (
        "DATA.MAX_BAD_FRACTION", "DATA.MEAN", "AUG.COLOR_JITTER", "AUG.RE_PROB", "MIXUP.PROB",
        "MIXUP.SWITCH_PROB", "SOLVER.WEIGHT_DECAY", "BN.WEIGHT_DECAY",
    ),
    "[0, 1)": (
        "MODEL.DROPOUT_RATE", "MIXUP.LABEL_SMOOTH_VALUE", "SOLVER.MOMENTUM", "SOLVER.BETAS",
        "SOLVER.EMA_DECAY",
    ),
    "(0, 1]": (
        "DATA.TRAIN_JITTER_SCALES_RELATIVE", "SOLVER.LAYER_DECAY", "SOLVER.GAMMA",
        "MULTIGRID.LONG_CYCLE_FACTORS", "MULTIGRID.SHORT_CYCLE_FACTORS",
    ),
    "(0, 100]": ("DATA.STD", "DATA.TRAIN_JITTER_ASPECT_RELATIVE"),
    "(0, 1000]": ("SOLVER.BASE_LR", "MULTIGRID.EPOCH_FACTOR"),
    "[0, 1000]": (
        "DATA.TARGET_FPS", "MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA", "SOLVER.COSINE_END_LR", "SOLVER.LRS",
        "SOLVER.WARMUP_START_LR", "NUM_GPUS", "DATA_LOADER.NUM_WORKERS", "BN.NUM_SYNC_DEVICES",
        "SOLVER.CLIP_GRAD_VAL", "SOLVER.CLIP_GRAD_L2NORM",
    ),
    "[0, 30]": ("AUG.RAND_MAGNITUDE",),
    "[0, 99]": (
        "RESNET.TEMPORAL_POOL", "RESNET.STEM_TEMPORAL_KERNEL", "RESNET.SHORTCUT_TEMPORAL_KERNEL",
        "RESNET.TEMPORAL_KERNELS", "RESNET.TEMPORAL_STRIDES",
    ),
    "[0, 5]": ("MODEL.FROZEN_STAGES",),
    "[1, 99]": ("RESNET.STEM_TEMPORAL_STRIDE", "AUG.NUM_SAMPLE"),
    "[1, 1024]": ("TEST.NUM_ENSEMBLE_VIEWS", "RESNET.WIDTH_PER_GROUP", "BN.NUM_SPLITS"),
    "[32, 4096]": ("DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE", "DATA.TRAIN_JITTER_SCALES"),
    "[0, 4096]": ("DATA.TEST_SHORT_SIDE", "DATA.TRAIN_PADDING"),
    "[1, 10000]": ("DATA.NUM_FRAMES", "DATA.SAMPLING_RATE"),
    "[0, 10000]": ("DATA.TRAIN_JITTER_RATE",),
    "[1, 1000000]": (
        "LOG_PERIOD", "TRAIN.BATCH_SIZE", "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD",
        "TRAIN.CHECKPOINTS_KEPT", "TEST.BATCH_SIZE", "SOLVER.MAX_EPOCH",
        "TRAIN.ACCUMULATION", "TRAIN.PROFILE_STEPS", "BN.NUM_BATCHES_PRECISE", "MULTIGRID.BN_BASE_SIZE",
    ),
    "[0, 1000000]": (
        "SOLVER.WARMUP_EPOCHS", "SOLVER.STEPS", "DATA_LOADER.TIMEOUT", "SOLVER.REFERENCE_BATCH_SIZE",
        "SOLVER.SKIP_NONFINITE_STEPS", "TRAIN.CHECKPOINT_MINUTES",
    ),
    "[2, 1000000]": ("MODEL.NUM_CLASSES",),
    "[0, 9223372036854775807]": ("RNG_SEED",),
}  # fmt: skip
CHOICES: dict[str, Sequence[Any]] = {
    "MODEL.ARCH": list(ARCHITECTURES),
    "MODEL.DIMS": [2, 3],
    "RESNET.STAGES": [3, 4],
    "DATA.SAMPLER": ["dense", "segments", "slowfast"],
    "DATA.LIST_FORMAT": ["videos", "frames", "folders"],
    "DATA.DECODING_BACKEND": ["pyav", "torchcodec", "decord"],
    "TEST.NUM_SPATIAL_CROPS": [1, 3, 10],
    "TEST.STORED_VIEWS": ["float32", "float16", "off"],
    "TRAIN.CHECKPOINT_INFLATE": list(METHODS),
    "TRAIN.HALF_DTYPE": ["bfloat16", "float16"],
    "TRAIN.HALF_PROBLEMS": ["error", "float32"],
    "SOLVER.OPTIMIZING_METHOD": ["sgd", "adamw"],
    "SOLVER.LR_POLICY": ["cosine", "steps_with_relative_lrs"],
    "BN.NORM_TYPE": list(NORMS),
}
# Prefixes of keys that need RESNET.STAGES 4, and of those that need MODEL.DIMS 3.
FOUR_STAGES = ("RESNET.TEMPORAL_", "RESNET.STEM_", "RESNET.SHORTCUT_")
OF_TIME = ("RESNET.TEMPORAL_", "RESNET.STEM_TEMPORAL_", "RESNET.SHORTCUT_TEMPORAL_")
# Keys in checkpoints of older versions: old -> new.
RENAMED = {"DATA.MAX_BAD_SHARE": "DATA.MAX_BAD_FRACTION"}
# Lists of floats that are empty by default.
NUMBER_LISTS = (
    "SOLVER.STEPS",
    "SOLVER.LRS",
    "DATA.TRAIN_JITTER_SCALES_RELATIVE",
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE",
)
# Lists of pairs of floats.
PAIR_LISTS = ("MULTIGRID.LONG_CYCLE_FACTORS",)
# Pixels of the smallest crop of a cycle.
SMALLEST_CROP = 16


def default_config() -> Config:
    """Return a new config with default values."""
    cfg = CfgNode()

    # The output folder: config.yaml, logs, checkpoints/, tensorboard/, views/, results.json, predictions.csv.
    cfg.OUTPUT_DIR = "output"
    # The seed of weights, sample order, clips, augmentation and dropout.
    cfg.RNG_SEED = 0
    # Number of processes, one per GPU (or on the CPU where there is none). 0: one process on the CPU.
    # torchrun takes precedence.
    cfg.NUM_GPUS = 1
    # Steps between log lines.
    cfg.LOG_PERIOD = 10
    # Let GPUs compute float32 convolutions and matrix products in TF32.
    cfg.ALLOW_TF32 = True

    cfg.TRAIN = CfgNode()
    cfg.TRAIN.ENABLE = True
    # Global batch size: clips per step over all processes (PySlowFast: per machine).
    cfg.TRAIN.BATCH_SIZE = 64
    # Epochs between validations, and between checkpoints; both also happen after the last epoch.
    cfg.TRAIN.EVAL_PERIOD = 10
    cfg.TRAIN.CHECKPOINT_PERIOD = 10
    # Minutes after the last checkpoint until another one, in the middle of an epoch. 0: none there.
    cfg.TRAIN.CHECKPOINT_MINUTES = 30.0
    # Number of most recent checkpoints to keep, besides the best one.
    cfg.TRAIN.CHECKPOINTS_KEPT = 3
    # Resume from the latest checkpoint in OUTPUT_DIR, if there is one.
    cfg.TRAIN.AUTO_RESUME = True
    # Initial weights, in any layout that README lists; the optimizer and the epoch start from zero.
    cfg.TRAIN.CHECKPOINT_FILE_PATH = ""
    # How 2D kernels are inflated: average (divided over time) or center (PySlowFast: True is average).
    cfg.TRAIN.CHECKPOINT_INFLATE = "average"
    # Compile the network with torch.compile.
    cfg.TRAIN.COMPILE = False
    # Parts of a batch that pass one after the other: BATCH_SIZE is micro-batch x processes x ACCUMULATION.
    # Batch normalization sees each micro-batch alone.
    cfg.TRAIN.ACCUMULATION = 1
    # Average gradients between processes in bfloat16 (PySlowFast: MODEL.FP16_ALLREDUCE, in float16).
    cfg.TRAIN.BF16_ALLREDUCE = False
    # [first, last]: write what torch.profiler sees of these steps of the run to OUTPUT_DIR/trace.json.
    cfg.TRAIN.PROFILE_STEPS = []
    # Compute convolutions and linear layers in half precision (autocast); validation does too.
    cfg.TRAIN.MIXED_PRECISION = False
    # bfloat16, or float16 for GPUs without it, whose loss is scaled. TEST.MIXED_PRECISION follows it.
    cfg.TRAIN.HALF_DTYPE = "bfloat16"
    # Before a run in half precision, its convolutions are compared with float32. For those that are wrong or
    # slow: error (end the run, naming them) or float32 (compute these layers in float32).
    cfg.TRAIN.HALF_PROBLEMS = "error"

    cfg.WANDB = CfgNode()
    # Also send the records of json_stats.log to Weights & Biases (pip install 'video_iresnet[wandb]').
    cfg.WANDB.ENABLE = False
    cfg.WANDB.PROJECT = "video_iresnet"

    cfg.TEST = CfgNode()
    cfg.TEST.ENABLE = True
    # Views per forward pass and process.
    cfg.TEST.BATCH_SIZE = 8
    # Weights to test. Empty: the latest checkpoint in OUTPUT_DIR, else TRAIN.CHECKPOINT_FILE_PATH.
    cfg.TEST.CHECKPOINT_FILE_PATH = ""
    # Clips per video, spread flush with both ends; a single clip is centred (PySlowFast: the first one).
    cfg.TEST.NUM_ENSEMBLE_VIEWS = 10
    # Square crops per clip: 1 (centre), 3 (along the longer side) or 10 (corners and centre, and mirrored).
    cfg.TEST.NUM_SPATIAL_CROPS = 3
    # Also report the accuracy with the frames of each clip reversed, shuffled, and frozen to the middle one.
    cfg.TEST.TEMPORAL_CHECKS = False
    # Precision of the views stored in OUTPUT_DIR/views: float32 (0.98 GB for the 19,796 videos of
    # Kinetics-400 with 10x3 views), float16 (0.49 GB; results come from the rounded numbers), or off, which
    # removes them after results.json is written.
    cfg.TEST.STORED_VIEWS = "float32"
    # Test the moving average of the weights (SOLVER.EMA_DECAY), if the checkpoint has one.
    cfg.TEST.EMA = True
    # Compute convolutions and linear layers in TRAIN.HALF_DTYPE.
    cfg.TEST.MIXED_PRECISION = False
    # Make each batch normalization that directly follows a convolution part of it: fewer operations, and the
    # same logits to about 1e-6 of their size.
    cfg.TEST.FOLD_BN = False
    # Compile the network with torch.compile: a minute or more at first, then faster. Batches are padded to
    # TEST.BATCH_SIZE.
    cfg.TEST.COMPILE = False

    cfg.DATA = CfgNode()
    # The folder of the lists; relative paths below start here.
    cfg.DATA.PATH_TO_DATA_DIR = ""
    cfg.DATA.TRAIN_LIST = "train.csv"
    cfg.DATA.VAL_LIST = "val.csv"
    cfg.DATA.TEST_LIST = "test.csv"
    # The folder that the paths in the lists are relative to; not read where the lists lie beside shards.
    cfg.DATA.PATH_PREFIX = ""
    # videos: lines of `path label`. frames: PySlowFast's rows of frames, with the labels in
    # something-something-v2-train.json and -validation.json. folders: `folder number_of_frames label`, as in
    # TSM.
    cfg.DATA.LIST_FORMAT = "videos"
    # For LIST_FORMAT folders: the file names of the frames; {folder} is the folder's own name.
    cfg.DATA.FRAME_NAMES = "img_%05d.jpg"
    # Videos have any number of labels: lists have lines of `path 3,17,42`, rows of frames their labels in
    # quotes. Each class is learned by itself, by binary cross entropy on a sigmoid, and the result is mean
    # average precision (pip install 'video_iresnet[labels]').
    cfg.DATA.MULTI_LABEL = False
    # The separator of path and label: a space, tab, comma or semicolon. Empty: detected from the first line.
    cfg.DATA.PATH_LABEL_SEPARATOR = ""
    # A file with one class name per line; the names are saved in checkpoints. With LIST_FORMAT frames, the
    # names come from something-something-v2-labels.json.
    cfg.DATA.CLASS_NAMES = ""
    # Maximum fraction of unreadable training videos; above it, a run ends with an error.
    cfg.DATA.MAX_BAD_FRACTION = 0.01
    # pyav, torchcodec or decord. Folders of frames need no setting.
    cfg.DATA.DECODING_BACKEND = "pyav"
    # dense: NUM_FRAMES frames, SAMPLING_RATE frames apart. segments: one frame from each of NUM_FRAMES equal
    # segments of the video. slowfast: PySlowFast's arithmetic, with clips of NUM_FRAMES * SAMPLING_RATE /
    # TARGET_FPS seconds.
    cfg.DATA.SAMPLER = "dense"
    cfg.DATA.NUM_FRAMES = 8
    cfg.DATA.SAMPLING_RATE = 8
    # In training, draw the sampling rate between SAMPLING_RATE and this value. 0: always SAMPLING_RATE.
    cfg.DATA.TRAIN_JITTER_RATE = 0
    # The frame rate that SAMPLING_RATE refers to. 0: the rate of each video (PySlowFast: 30). The rates of
    # folders of frames are in frame_rates.json beside the folders.
    cfg.DATA.TARGET_FPS = 0.0
    # For SAMPLER slowfast: spread test clips flush with both ends.
    cfg.DATA.USE_OFFSET_SAMPLING = False
    # Mean and standard deviation per RGB channel, for values in [0, 1].
    cfg.DATA.MEAN = [0.45, 0.45, 0.45]
    cfg.DATA.STD = [0.225, 0.225, 0.225]
    # Range of the random short side in training; validation uses the first value.
    cfg.DATA.TRAIN_JITTER_SCALES = [256, 320]
    # Draw the inverse of the short side uniformly instead of the short side.
    cfg.DATA.INV_UNIFORM_SAMPLE = False
    # If not empty, crop a random fraction of the area in this range, with an aspect ratio (width / height) in
    # the range below, instead of using TRAIN_JITTER_SCALES.
    cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE = []
    cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
    # If not 0, crop from a picture whose short side is TRAIN_CROP_SIZE, with as many black pixels on each
    # side, instead of using TRAIN_JITTER_SCALES.
    cfg.DATA.TRAIN_PADDING = 0
    # Crop size in pixels, in training and validation.
    cfg.DATA.TRAIN_CROP_SIZE = 224
    # Crop size in pixels, in testing.
    cfg.DATA.TEST_CROP_SIZE = 256
    # Short side in pixels, in testing. 0: TEST_CROP_SIZE.
    cfg.DATA.TEST_SHORT_SIDE = 0
    # Flip half of the training clips horizontally. If class names are known, classes that differ only in left
    # and right swap labels.
    cfg.DATA.RANDOM_FLIP = True

    cfg.AUG = CfgNode()
    # Augmented samples per decoded clip; BATCH_SIZE counts all of them.
    cfg.AUG.NUM_SAMPLE = 1
    # Maximum relative change of brightness, contrast and saturation. 0: none.
    cfg.AUG.COLOR_JITTER = 0.0
    # Magnitude of RandAugment, up to 30, with two operations per clip. 0: none (PySlowFast: AA_TYPE).
    cfg.AUG.RAND_MAGNITUDE = 0
    # Probability of random erasing.
    cfg.AUG.RE_PROB = 0.0

    cfg.MIXUP = CfgNode()
    # Mixup and CutMix. An alpha of 0 turns that kind off.
    cfg.MIXUP.ENABLE = False
    cfg.MIXUP.ALPHA = 0.8
    cfg.MIXUP.CUTMIX_ALPHA = 1.0
    # Probability of mixing a batch, and of CutMix if both kinds are on.
    cfg.MIXUP.PROB = 1.0
    cfg.MIXUP.SWITCH_PROB = 0.5
    # Label smoothing, with or without mixing (PySlowFast: 0.1, with mixing only).
    cfg.MIXUP.LABEL_SMOOTH_VALUE = 0.0

    cfg.DATA_LOADER = CfgNode()
    # Decoding workers per process. 0: decode in the main process.
    cfg.DATA_LOADER.NUM_WORKERS = 8
    # Seconds to wait for a batch before the run ends with the name of the file being read. 0: no limit.
    cfg.DATA_LOADER.TIMEOUT = 600.0

    cfg.MODEL = CfgNode()
    # resnet, resstage, iresnet, resgroup, resgroupfix, iresgroup or iresgroupfix. PySlowFast's c2d, i3d and
    # slow are values of RESNET.TEMPORAL_KERNELS.
    cfg.MODEL.ARCH = "iresnet"
    # 3 for video, or 2 for a network of images: lists of pictures, or one frame of each video
    # (DATA.NUM_FRAMES 1). It takes none of the temporal keys of RESNET.
    cfg.MODEL.DIMS = 3
    cfg.MODEL.NUM_CLASSES = 400
    cfg.MODEL.DROPOUT_RATE = 0.5
    # Classify every window of the size of the training features and average the probabilities, as PySlowFast
    # does for larger test crops. False: average the features.
    cfg.MODEL.HEAD_PER_POSITION = False
    # Levels that are not trained and whose batch normalization stands still: 1 for the stem, 2 for the stem
    # and the first stage, and so on. 0: none.
    cfg.MODEL.FROZEN_STAGES = 0
    # Do not train batch normalization; its statistics stand still.
    cfg.MODEL.FROZEN_BN = False
    # Activation checkpointing: less memory, about a third more time.
    cfg.MODEL.ACT_CHECKPOINT = False

    cfg.RESNET = CfgNode()
    # 4, or 3 for the CIFAR networks: about 32 pixels, WIDTH_PER_GROUP 16, DEPTH 9n+2, a stem of kernel 3, no
    # temporal strides; they take none of the TEMPORAL_, STEM_ and SHORTCUT_ keys.
    cfg.RESNET.STAGES = 4
    # 18 and 34 (basic blocks); 50, 101, 152, 200, 302, 404, 1001 (bottlenecks); grouped architectures: 50,
    # 101, 152.
    cfg.RESNET.DEPTH = 50
    # Channels of the stem and of the first stage; each stage doubles them.
    cfg.RESNET.WIDTH_PER_GROUP = 64
    # full (3x3x3), i3d, slow, c2d, or the temporal kernels of the 3x3 convolutions in the four stages: a
    # number, or a list that the blocks cycle through.
    cfg.RESNET.TEMPORAL_KERNELS = "full"
    # Temporal strides of the four stages. Empty, or 0 in the next two keys: the default of TEMPORAL_KERNELS.
    cfg.RESNET.TEMPORAL_STRIDES = []
    # Size and stride of the temporal max pool after the first stage. 1: none.
    cfg.RESNET.TEMPORAL_POOL = 0
    cfg.RESNET.STEM_TEMPORAL_KERNEL = 0
    cfg.RESNET.STEM_TEMPORAL_STRIDE = 1
    # False removes the max pool of the stem; iResNets have none.
    cfg.RESNET.STEM_POOL = True
    # Temporal kernel of the max pool in the improved shortcut. 0: that of the block's 3x3 convolution.
    cfg.RESNET.SHORTCUT_TEMPORAL_KERNEL = 0
    # Stage blocks as in the authors' released code (True) or as drawn in the paper (False).
    cfg.RESNET.RECTIFY_IDENTITY = True
    # Initialize residual branches to zero.
    cfg.RESNET.ZERO_INIT_RESIDUAL = False

    cfg.BN = CfgNode()
    # Weight decay of batch normalization.
    cfg.BN.WEIGHT_DECAY = 0.0
    # batchnorm: statistics of the clips of one process. sub_batchnorm: of each of NUM_SPLITS parts of them.
    # sync_batchnorm: of the clips of NUM_SYNC_DEVICES processes together; 0: of all (PySlowFast: 1).
    cfg.BN.NORM_TYPE = "batchnorm"
    cfg.BN.NUM_SPLITS = 1
    cfg.BN.NUM_SYNC_DEVICES = 0
    # Before a validation, replace the running statistics by those of NUM_BATCHES_PRECISE training batches, or
    # of one epoch if that is less.
    cfg.BN.USE_PRECISE_STATS = False
    cfg.BN.NUM_BATCHES_PRECISE = 200

    # Multigrid training (arXiv 1912.00998): larger batches of smaller clips, for EPOCH_FACTOR times as many
    # epochs.
    cfg.MULTIGRID = CfgNode()
    # Change frames and crop over the epochs between two of SOLVER.STEPS, by the factors of each pair in turn.
    # Batches and learning rate grow as clips shrink, and BN keeps the statistics of about BN_BASE_SIZE clips:
    # of several processes together, or of parts of the clips of one.
    cfg.MULTIGRID.LONG_CYCLE = False
    cfg.MULTIGRID.LONG_CYCLE_FACTORS = [[0.25, 0.5**0.5], [0.5, 0.5**0.5], [0.5, 1.0], [1.0, 1.0]]
    cfg.MULTIGRID.BN_BASE_SIZE = 8
    # Batches take turns in their crop: these factors of TRAIN_CROP_SIZE, and the crop of the epoch.
    cfg.MULTIGRID.SHORT_CYCLE = False
    cfg.MULTIGRID.SHORT_CYCLE_FACTORS = [0.5, 0.5**0.5]
    cfg.MULTIGRID.EPOCH_FACTOR = 1.5

    cfg.SOLVER = CfgNode()
    # sgd or adamw.
    cfg.SOLVER.OPTIMIZING_METHOD = "sgd"
    # Peak learning rate for the given batch size.
    cfg.SOLVER.BASE_LR = 0.1
    # If not 0, BASE_LR, COSINE_END_LR and WARMUP_START_LR are for this batch size and are scaled linearly to
    # TRAIN.BATCH_SIZE (Goyal et al., arXiv 1706.02677).
    cfg.SOLVER.REFERENCE_BATCH_SIZE = 0
    # cosine or steps_with_relative_lrs.
    cfg.SOLVER.LR_POLICY = "cosine"
    cfg.SOLVER.COSINE_END_LR = 0.0
    # steps_with_relative_lrs: from epoch STEPS[i] on, the learning rate is LRS[i] * BASE_LR.
    cfg.SOLVER.STEPS = []
    cfg.SOLVER.LRS = []
    # With MULTIGRID.LONG_CYCLE, the factor of the learning rate at each of STEPS, in place of LRS.
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.MAX_EPOCH = 300
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    cfg.SOLVER.WARMUP_START_LR = 0.01
    # The cosine begins after the warm-up instead of at epoch 0.
    cfg.SOLVER.COSINE_AFTER_WARMUP = False
    # For sgd.
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = True
    # For adamw.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # No weight decay of biases.
    cfg.SOLVER.ZERO_WD_1D_PARAM = False
    # The factor of the learning rate from each stage to the one before it; the classifier has the full rate.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Limit of the absolute value of each element of the gradient, or of its L2 norm. 0: none.
    cfg.SOLVER.CLIP_GRAD_VAL = 0.0
    cfg.SOLVER.CLIP_GRAD_L2NORM = 0.0
    # Decay of a moving average of the weights (EMA), which is validated, tested and saved too. 0: none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Number of steps of a run whose loss or gradient may be not finite; they change nothing.
    cfg.SOLVER.SKIP_NONFINITE_STEPS = 0
    return cfg


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Return the defaults, changed by a YAML file (and its `_BASE_`) and then by `KEY VALUE` overrides. The
    file may be PySlowFast's (see load_with_notes). Raises InputError.

    A `path` like configs/own/iR3D18.yaml that does not exist means the file of the clone or the installed
    package.
    """
    return load_with_notes(path, overrides)[0]


def load_with_notes(path: str, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Return the same with what there is to tell of it. A config of PySlowFast, whose overrides are in its
    keys too, is translated, and each difference is a line.
    """
    if len(overrides) % 2:
        raise InputError(f"override {overrides[-1]} has no value; expected KEY VALUE pairs")
    changes = [(key, (text, COMMAND_LINE)) for key, text in zip(overrides[::2], overrides[1::2], strict=True)]
    cfg, notes = default_config(), list[str]()
    path = _found(path)
    given = _read_values(path, last_wins=True)
    if is_slowfast(given):
        given, notes = translate(given | dict(changes), dict(leaves(cfg)), path)
        changes = []
    else:
        given = _read_values(path)
    for key, (value, source) in (*given.items(), *changes):
        _set(cfg, key, value, source)
    validate(cfg)
    return cfg, notes


def changed_yaml(cfg: Config) -> str:
    """Return a config as YAML, with the keys alone that differ from the defaults: a file to keep."""
    defaults = dict(leaves(default_config()))
    tree: dict[str, Any] = {}
    for key, value in leaves(cfg):
        if value != defaults[key]:
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
    return dump_yaml(tree)


def parse_config(text: object) -> Config | None:
    """Return the config of a checkpoint, with defaults for missing keys; None if another project wrote it."""
    try:
        tree = parse_yaml(text, "the checkpoint's config") if isinstance(text, str) else None
    except InputError:
        return None
    resnet = tree.get("RESNET") if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not isinstance(resnet, dict) or "RECTIFY_IDENTITY" not in resnet:
        return None  # other projects have no RECTIFY_IDENTITY
    cfg = default_config()
    known = dict(leaves(cfg))
    for key, value in leaves(tree):
        key = RENAMED.get(key, key)
        if key in known:
            _set(cfg, key, value, "the checkpoint's config")
    return cfg


def config_of_run(folder: Path) -> Config:
    """Return the config of a run from config.yaml in its OUTPUT_DIR. Raises InputError."""
    path = folder / "config.yaml"
    if not path.exists():
        raise InputError(f"{folder} holds no config.yaml; name the OUTPUT_DIR of a run")
    with open_text(str(path)) as file:
        config = parse_config(file.read())
    if config is None:
        raise InputError(f"{path} is no config of a run of this project; name the OUTPUT_DIR of a run")
    return config


def keys_of_run(folder: Path) -> dict[str, Any]:
    """Return the same as {full key: value}, without OUTPUT_DIR, which each run has of its own."""
    return {key: value for key, value in leaves(config_of_run(folder)) if key != "OUTPUT_DIR"}


def _found(path: str) -> str:
    """Return the path of a config; see load_config."""
    if os.path.exists(path) or not path.startswith(f"configs{os.sep}"):
        return path
    ours = ROOT / path
    if not ours.is_file():
        raise InputError(f"config {path} does not exist, neither here nor in {ROOT}; correct --cfg")
    return str(ours)


def _read_values(
    path: str, derived: tuple[str, ...] = (), *, last_wins: bool = False
) -> dict[str, tuple[Any, str]]:
    """Return {full key: (value, file)} of a config and its bases. `_BASE_` is a path relative to the config,
    or a list of them; `derived` are the configs based on this one. `last_wins`: see parse_yaml.
    """
    with open_text(path) as file:
        tree = parse_yaml(file.read(), f"config {path}", last_wins=last_wins)
    if not isinstance(tree, dict):
        raise InputError(f"config {path} holds no keys; expected lines like `TRAIN:` and `  BATCH_SIZE: 64`")
    bases = tree.pop("_BASE_", [])
    derived = (*derived, os.path.realpath(path))
    values = {}
    for name in bases if isinstance(bases, list) else [bases]:
        if not isinstance(name, str):
            raise InputError(f"_BASE_ in {path} is {name!r}; expected the path of a config")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(name))
        if os.path.exists(base) and os.path.realpath(base) in derived:
            raise InputError(
                f"_BASE_ in {path} is {name}, which is based on {path} itself; name another config"
            )
        if not os.path.exists(base):
            raise InputError(f"_BASE_ in {path} is {name}, but {base} does not exist; correct it")
        values.update(_read_values(base, derived, last_wins=last_wins))
    for key, value in leaves(tree):
        values[key] = value, path
    return values


def needed_files(cfg: Config) -> dict[str, str]:
    """Return {key: path} of the files that a run reads, except the videos."""
    folder = cfg.DATA.PATH_TO_DATA_DIR
    files = {}
    if cfg.TRAIN.ENABLE:
        files["DATA.TRAIN_LIST"] = join(folder, cfg.DATA.TRAIN_LIST)
        files["DATA.VAL_LIST"] = join(folder, cfg.DATA.VAL_LIST)
        if cfg.TRAIN.CHECKPOINT_FILE_PATH:
            files["TRAIN.CHECKPOINT_FILE_PATH"] = cfg.TRAIN.CHECKPOINT_FILE_PATH
    if cfg.TEST.ENABLE:
        files["DATA.TEST_LIST"] = join(folder, cfg.DATA.TEST_LIST)
        if cfg.TEST.CHECKPOINT_FILE_PATH:
            files["TEST.CHECKPOINT_FILE_PATH"] = cfg.TEST.CHECKPOINT_FILE_PATH
    if cfg.DATA.CLASS_NAMES:
        files["DATA.CLASS_NAMES"] = join(folder, cfg.DATA.CLASS_NAMES)
    return files


def check_files(cfg: Config) -> None:
    """Raise InputError if a file that a run reads does not exist."""
    for key, path in needed_files(cfg).items():
        if not path_manager.exists(path):
            raise InputError(
                f"{key}: {path} does not exist; correct it, or DATA.PATH_TO_DATA_DIR "
                f"({cfg.DATA.PATH_TO_DATA_DIR!r})"
            )


def validate(cfg: Config) -> None:
    """Check the ranges of single keys, and keys that depend on each other; those of training only where there
    is training. Raises InputError with the first problem.
    """
    for problem in _problems(cfg):
        raise InputError(problem)


def _problems(cfg: Config) -> Iterator[str]:
    choices = dict(CHOICES)
    if cfg.RESNET.STAGES == 4 and cfg.MODEL.ARCH in ARCHITECTURES:
        choices["RESNET.DEPTH"] = GROUPED_DEPTHS if ARCHITECTURES[cfg.MODEL.ARCH].groups else list(DEPTHS)
    for key, allowed in choices.items():
        if _is_checked(cfg, key) and _get(cfg, key) not in allowed:
            yield f"{key} is {_get(cfg, key)}; expected one of {', '.join(map(str, allowed))}"
    for interval, keys in RANGES.items():
        for key in keys:
            value = _get(cfg, key)
            if _is_checked(cfg, key) and not _is_inside(value, interval):
                expected = "numbers" if isinstance(value, list) else "a number"
                yield f"{key} is {value}; expected {expected} in {interval}"
    for key in ("DATA.MEAN", "DATA.STD"):
        if len(_get(cfg, key)) != 3:
            yield f"{key} is {_get(cfg, key)}; expected three numbers, one for each colour"
    if cfg.WANDB.ENABLE and not cfg.WANDB.PROJECT.strip():
        yield "WANDB.PROJECT is empty; name a project of Weights & Biases, or set WANDB.ENABLE False"
    yield from _network_problems(cfg)
    yield from _sampling_problems(cfg)
    if cfg.TRAIN.ENABLE:
        yield from _training_problems(cfg)
        yield from _multigrid_problems(cfg)
        yield from _schedule_problems(cfg)
    elif not cfg.TEST.ENABLE:
        yield "TRAIN.ENABLE and TEST.ENABLE are both False, which leaves nothing to do; set one to True"


def _network_problems(cfg: Config) -> Iterator[str]:
    data, resnet = cfg.DATA, cfg.RESNET
    if 0 < data.TEST_SHORT_SIDE < data.TEST_CROP_SIZE:
        yield (
            f"DATA.TEST_SHORT_SIDE {data.TEST_SHORT_SIDE} is smaller than DATA.TEST_CROP_SIZE "
            f"{data.TEST_CROP_SIZE}; make it larger, or 0"
        )
    if data.MULTI_LABEL and cfg.MODEL.HEAD_PER_POSITION:
        yield (
            "MODEL.HEAD_PER_POSITION is True, which averages probabilities that sum to 1, but "
            "DATA.MULTI_LABEL is True; set one to False"
        )
    if cfg.MODEL.DIMS == 2:
        yield from _image_problems(cfg)
    if resnet.STAGES == 3:
        yield from _unneeded(cfg, FOUR_STAGES, "RESNET.STAGES", 4)
    if cfg.MODEL.DIMS == 2 or resnet.STAGES == 3:
        return
    kernel = resnet.SHORTCUT_TEMPORAL_KERNEL
    if kernel and kernel % 2 == 0:
        yield f"RESNET.SHORTCUT_TEMPORAL_KERNEL is {kernel}; expected an odd number, or 0"
    try:
        pattern = temporal_pattern(
            resnet.TEMPORAL_KERNELS,
            resnet.TEMPORAL_STRIDES or None,
            resnet.TEMPORAL_POOL or None,
            resnet.STEM_TEMPORAL_KERNEL or None,
        )
    except ValueError as error:
        yield f"RESNET: {error}"
        return
    stride = resnet.STEM_TEMPORAL_STRIDE * pattern.pool * math.prod(pattern.strides)
    frames, fewest = f"DATA.NUM_FRAMES {data.NUM_FRAMES}", data.NUM_FRAMES
    if cfg.TRAIN.ENABLE and cfg.MULTIGRID.LONG_CYCLE and cfg.MULTIGRID.LONG_CYCLE_FACTORS:
        fewest = round(data.NUM_FRAMES * min(time for time, _ in cfg.MULTIGRID.LONG_CYCLE_FACTORS))
        frames += f" by MULTIGRID.LONG_CYCLE_FACTORS, {fewest},"
    if stride > fewest:
        yield (
            f"{frames} is less than {stride}, the product of the temporal strides "
            "of stem, pool and stages (RESNET); take more frames or smaller strides"
        )


def _unneeded(cfg: Config, prefixes: tuple[str, ...], key: str, expected: int) -> Iterator[str]:
    for name, default in leaves(default_config()):
        if name.startswith(prefixes) and _get(cfg, name) != default:
            yield (
                f"{name} is {_get(cfg, name)}, but {key} is {_get(cfg, key)}; leave it out, or set {key} to "
                f"{expected}"
            )


def _image_problems(cfg: Config) -> Iterator[str]:
    yield from _unneeded(cfg, OF_TIME, "MODEL.DIMS", 3)
    one = {"DATA.NUM_FRAMES": cfg.DATA.NUM_FRAMES, "TEST.NUM_ENSEMBLE_VIEWS": cfg.TEST.NUM_ENSEMBLE_VIEWS}
    for key, value in one.items():
        if value != 1:
            yield f"{key} is {value}, but MODEL.DIMS is 2; set it to 1"
    if cfg.TEST.TEMPORAL_CHECKS:
        yield "TEST.TEMPORAL_CHECKS is True, but MODEL.DIMS is 2; set it to False"


def _sampling_problems(cfg: Config) -> Iterator[str]:
    data = cfg.DATA
    if data.SAMPLER == "slowfast" and data.TARGET_FPS <= 0:
        yield "DATA.SAMPLER slowfast needs DATA.TARGET_FPS; PySlowFast's default is 30"
    for key in ("DATA.TRAIN_JITTER_RATE", "DATA.TARGET_FPS"):
        if data.SAMPLER == "segments" and _get(cfg, key):
            yield f"{key} is {_get(cfg, key)}, but DATA.SAMPLER segments takes no rate; set it to 0"
    if data.USE_OFFSET_SAMPLING and data.SAMPLER != "slowfast":
        yield "DATA.USE_OFFSET_SAMPLING is True; expected it with DATA.SAMPLER slowfast alone"


def _training_problems(cfg: Config) -> Iterator[str]:
    data, mixup = cfg.DATA, cfg.MIXUP
    scales = data.TRAIN_JITTER_SCALES
    if not (len(scales) == 2 and scales[0] <= scales[1]):
        yield f"DATA.TRAIN_JITTER_SCALES is {scales}; expected the smallest and the largest"
    if scales[0] < data.TRAIN_CROP_SIZE:
        yield (
            f"DATA.TRAIN_CROP_SIZE {data.TRAIN_CROP_SIZE} is larger than the smallest short side {scales[0]} "
            "(DATA.TRAIN_JITTER_SCALES); make the crop smaller or the scales larger"
        )
    if 0 < data.TRAIN_JITTER_RATE < data.SAMPLING_RATE:
        yield (
            f"DATA.TRAIN_JITTER_RATE is {data.TRAIN_JITTER_RATE}; expected at least DATA.SAMPLING_RATE "
            f"{data.SAMPLING_RATE}, or 0"
        )
    area, aspect = data.TRAIN_JITTER_SCALES_RELATIVE, data.TRAIN_JITTER_ASPECT_RELATIVE
    are_ranges = len(area) == len(aspect) == 2 and area[0] <= area[1] and aspect[0] <= aspect[1]
    if (area or aspect) and not are_ranges:
        yield (
            f"DATA.TRAIN_JITTER_SCALES_RELATIVE is {area} and DATA.TRAIN_JITTER_ASPECT_RELATIVE is {aspect}; "
            "expected the smallest and the largest of each, or two empty lists"
        )
    size, samples = cfg.TRAIN.BATCH_SIZE, cfg.AUG.NUM_SAMPLE
    if size % samples:
        yield f"TRAIN.BATCH_SIZE {size} is not a multiple of AUG.NUM_SAMPLE {samples}"
    if size % cfg.TRAIN.ACCUMULATION:
        yield f"TRAIN.BATCH_SIZE {size} is not a multiple of TRAIN.ACCUMULATION {cfg.TRAIN.ACCUMULATION}"
    steps = cfg.TRAIN.PROFILE_STEPS
    if steps and not (len(steps) == 2 and 2 <= steps[0] <= steps[1]):
        yield f"TRAIN.PROFILE_STEPS is {steps}; expected the first step, of at least 2, and the last one"
    if cfg.TRAIN.COMPILE and cfg.MODEL.ACT_CHECKPOINT:
        yield "TRAIN.COMPILE and MODEL.ACT_CHECKPOINT are both True; set one to False"
    if mixup.ENABLE and not mixup.ALPHA + mixup.CUTMIX_ALPHA:
        yield (
            f"MIXUP.ALPHA is {mixup.ALPHA} and MIXUP.CUTMIX_ALPHA is {mixup.CUTMIX_ALPHA}; expected numbers "
            "of which one is above 0"
        )


def _multigrid_problems(cfg: Config) -> Iterator[str]:
    multigrid, solver = cfg.MULTIGRID, cfg.SOLVER
    long = multigrid.LONG_CYCLE_FACTORS if multigrid.LONG_CYCLE else [[1.0, 1.0]]
    short = multigrid.SHORT_CYCLE_FACTORS if multigrid.SHORT_CYCLE else []
    if not long:
        yield "MULTIGRID.LONG_CYCLE_FACTORS is []; expected pairs of numbers like [[0.5, 1]]"
        return
    if round(cfg.DATA.NUM_FRAMES * min([time for time, _ in long])) < 1:
        yield f"MULTIGRID.LONG_CYCLE_FACTORS is {long}, which leaves nothing of DATA.NUM_FRAMES"
    smallest = min([crop for _, crop in long])
    if short and max(short) > smallest:
        yield (
            f"MULTIGRID.SHORT_CYCLE_FACTORS is {short}; expected numbers up to {smallest}, the smallest "
            "factor of the crop in the long cycle"
        )
    crop = round(cfg.DATA.TRAIN_CROP_SIZE * min([*short, smallest]))
    if (multigrid.LONG_CYCLE or short) and crop < SMALLEST_CROP:
        yield (
            f"DATA.TRAIN_CROP_SIZE {cfg.DATA.TRAIN_CROP_SIZE} gives crops of {crop} pixels by the factors of "
            f"MULTIGRID; expected at least {SMALLEST_CROP}"
        )
    if multigrid.LONG_CYCLE and cfg.BN.NORM_TYPE != "batchnorm":
        yield (
            f"BN.NORM_TYPE is {cfg.BN.NORM_TYPE}, but MULTIGRID.LONG_CYCLE changes it by "
            "MULTIGRID.BN_BASE_SIZE; set it to batchnorm"
        )
    if multigrid.LONG_CYCLE and solver.LR_POLICY != "steps_with_relative_lrs":
        yield (
            f"SOLVER.LR_POLICY is {solver.LR_POLICY}, but MULTIGRID.LONG_CYCLE follows SOLVER.STEPS; set it "
            "to steps_with_relative_lrs"
        )
    if multigrid.LONG_CYCLE and not (
        len(solver.STEPS) > 1 and _are_steps(solver.STEPS) and solver.STEPS[-1] < solver.MAX_EPOCH
    ):
        yield (
            f"SOLVER.STEPS is {solver.STEPS}; with MULTIGRID.LONG_CYCLE, expected two or more ascending "
            f"numbers from 0 and below SOLVER.MAX_EPOCH {solver.MAX_EPOCH}"
        )


def _are_steps(steps: Sequence[float]) -> bool:
    return steps[0] == 0 and all(before < after for before, after in itertools.pairwise(steps))


def _schedule_problems(cfg: Config) -> Iterator[str]:
    solver, multigrid = cfg.SOLVER, cfg.MULTIGRID
    epochs, by = solver.MAX_EPOCH, ""
    if multigrid.LONG_CYCLE or multigrid.SHORT_CYCLE:
        epochs, by = int(epochs * multigrid.EPOCH_FACTOR), f", by MULTIGRID.EPOCH_FACTOR {epochs}"
    if epochs <= solver.WARMUP_EPOCHS:
        yield (
            f"SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS} leaves nothing of SOLVER.MAX_EPOCH "
            f"{solver.MAX_EPOCH}{by}"
        )
    if len(solver.BETAS) != 2:
        yield f"SOLVER.BETAS is {solver.BETAS}; expected two numbers"
    if solver.CLIP_GRAD_VAL and solver.CLIP_GRAD_L2NORM:
        yield "SOLVER.CLIP_GRAD_VAL and SOLVER.CLIP_GRAD_L2NORM are both set; set one to 0"
    if solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.NESTEROV needs a SOLVER.MOMENTUM above 0"
    if solver.LR_POLICY == "cosine":
        if solver.COSINE_END_LR >= solver.BASE_LR:
            yield f"SOLVER.COSINE_END_LR {solver.COSINE_END_LR} is not below SOLVER.BASE_LR {solver.BASE_LR}"
    elif not multigrid.LONG_CYCLE and not (
        len(solver.STEPS) == len(solver.LRS) > 0
        and solver.STEPS[0] == 0
        and sorted(solver.STEPS) == solver.STEPS
    ):
        yield (
            f"SOLVER.STEPS {solver.STEPS} and SOLVER.LRS {solver.LRS} do not fit; expected as many rates as "
            "steps, and ascending steps from 0"
        )


def _is_checked(cfg: Config, key: str) -> bool:
    return cfg.TRAIN.ENABLE or key in TESTING_TOO or not key.startswith(TRAINING)


def _is_inside(value: Any, interval: str) -> bool:
    """Whether a number, or each one of a list, is in an interval such as [0, 1)."""
    if isinstance(value, list):
        return all(_is_inside(item, interval) for item in value)
    if not isinstance(value, int | float):
        return True
    least, most = map(float, interval[1:-1].split(","))
    return (least < value or (interval[0] == "[" and least == value)) and (
        value < most or (interval[-1] == "]" and value == most)
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _get(cfg: Config, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) for every leaf of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(cfg: Config, key: str, value: Any, source: str) -> None:
    known = dict(leaves(cfg))
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown key {key} in {source}; did you mean {nearest}?")
    *parents, name = key.split(".")
    for parent in parents:
        cfg = cfg[parent]
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{key} in {source} is {value!r}; expected a text without NUL characters")
    try:
        setattr(cfg, name, _convert(known[key], value, key, source))
    except OverflowError as error:
        raise InputError(f"{key} in {source} is {value!r}; expected a smaller number") from error


def _convert(default: Any, value: Any, key: str, source: str) -> Any:
    """Return `value` with the type of `default`; where needed, text is parsed and an int becomes a float."""
    original = value
    if isinstance(value, str) and (
        not isinstance(default, str) or (key in NAME_OR_LIST and value.startswith("["))
    ):
        value = literal(value)
    if key in NAME_OR_LIST and isinstance(value, list):
        return value
    if isinstance(default, str) and isinstance(value, int | float) and source == COMMAND_LINE:
        value = str(original)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if key in PAIR_LISTS:
        if isinstance(value, list | tuple) and all(map(_is_pair, value)):
            return [[float(number) for number in pair] for pair in value]
        raise InputError(f"{key} in {source} is {original!r}; expected pairs of numbers like [[0.5, 1]]")
    if isinstance(default, list) and isinstance(value, list | tuple):
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        whole = all(isinstance(item, int) for item in default) and key not in NUMBER_LISTS
        if numbers and not (whole and any(isinstance(item, float) for item in value)):
            return [item if whole else float(item) for item in value]
        raise InputError(
            f"{key} in {source} is {original!r}; expected a list of {'whole ' if whole else ''}numbers"
        )
    if type(value) is not type(default):
        expected = {
            str: "a text",
            bool: "True or False",
            int: "a whole number",
            float: "a number",
            list: "a list like [1, 2]",
        }[type(default)]
        raise InputError(f"{key} in {source} is {original!r}; expected {expected}")
    return value
