"""Configs: strict keys and types, overrides, cross-checks, and that every key lives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import DEMO, ROOT

from video_iresnet import build
from video_iresnet.config import default_config, leaves, load_config
from video_iresnet.data.mixing import Mixer, plain_targets
from video_iresnet.data.sampling import SlowFastSampler
from video_iresnet.data.transforms import RandomErasing, RandomFlip, RandomResizedCrop, ShortSideJitter
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.plain_yaml import parse_yaml

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_configs_build_and_run_forward(path: Path) -> None:
    cfg = load_config(str(path))
    if cfg.RESNET.STAGES == 3:  # thousands of layers take seconds to build
        cfg.RESNET.DEPTH = min(cfg.RESNET.DEPTH, 164)
    with torch.device("meta"):
        model = build.build_model(cfg)
        clips = torch.empty(2, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
        assert model(clips).shape == (2, cfg.MODEL.NUM_CLASSES)
    assert 0 < build.build_schedule(cfg)(0.5) <= cfg.SOLVER.BASE_LR
    assert path.read_text().startswith("#")


def keys_of_defaults() -> set[str]:
    cfg = default_config()
    return {f"{name}.{key}" for name, node in cfg.items() if isinstance(node, dict) for key in node} | {
        name for name, node in cfg.items() if not isinstance(node, dict)
    }


def test_every_key_is_read_and_every_key_read_exists() -> None:
    read = set()
    for name in ("run.py", "folder.py", "build.py"):
        text = (ROOT / "video_iresnet" / name).read_text()
        text = re.sub(
            r"(solver|mixup|resnet|train)\.([A-Z])", lambda match: f"cfg.{match[1].upper()}.{match[2]}", text
        )
        read |= {match.rstrip(".") for match in re.findall(r"cfg\.((?:[A-Z][A-Z_0-9]*\.?)+)", text)} - {
            "SOLVER",
            "RESNET",
            "MIXUP",
            "TRAIN",
        }
    by_name = {
        key
        for key in keys_of_defaults()
        if key.endswith(("_LIST", "NUM_GPUS", "TRAIN.ENABLE", "TEST.ENABLE"))
    }  # needed_files, run_net.py
    assert read <= keys_of_defaults()
    assert keys_of_defaults() - read <= by_name


# What belongs to a machine, to a user's files or to a single run, and to every recipe here alike.
RUN_CONTROLS = {
    "RNG_SEED", "NUM_GPUS", "LOG_PERIOD", "TRAIN.ENABLE", "TEST.ENABLE", "TRAIN.AUTO_RESUME",
    "WANDB.ENABLE", "WANDB.PROJECT",
    "TRAIN.CHECKPOINTS_KEPT", "TEST.CHECKPOINT_FILE_PATH", "DATA.PATH_LABEL_SEPARATOR",
    "DATA.MAX_BAD_FRACTION", "SOLVER.MOMENTUM", "ALLOW_TF32", "TRAIN.PROFILE_STEPS",
    "TEST.EMA", "MODEL.FROZEN_BN",
}  # fmt: skip


def test_every_key_is_set_by_a_config_and_by_a_test() -> None:
    trees = [parse_yaml(path.read_text(), str(path)) for path in CONFIGS]
    assert keys_of_defaults() - {key for tree in trees for key, _ in leaves(tree)} == RUN_CONTROLS
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    tests = re.sub(r"RUN_CONTROLS = \{.*?\}", "", tests, flags=re.DOTALL)
    assert not [key for key in keys_of_defaults() if not re.search(rf"\b{re.escape(key)}\b", tests)]


def test_the_separator_of_lists_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a 1,2\n")
    (tmp_path / "a 1").touch()
    keys = {"DATA.PATH_TO_DATA_DIR": str(tmp_path), "DATA.CLASS_NAMES": "", "DATA.PATH_LABEL_SEPARATOR": ","}
    cfg = load_config(DEMO, [word for pair in keys.items() for word in pair])
    assert [(record.name, record.label) for record in build.build_records(cfg, "DATA.TRAIN_LIST")] == [
        ("a 1", 2)
    ]


def test_overrides_convert_like_yaml() -> None:
    cfg = load_config(
        DEMO,
        [
            "SOLVER.WARMUP_EPOCHS",
            "3",
            "SOLVER.WEIGHT_DECAY",
            "5e-4",
            "DATA.TRAIN_JITTER_SCALES",
            "(50,60)",
            "OUTPUT_DIR",
            "7",
        ],
    )
    assert isinstance(cfg.SOLVER.WARMUP_EPOCHS, float)
    assert (
        cfg.SOLVER.WARMUP_EPOCHS,
        cfg.SOLVER.WEIGHT_DECAY,
        cfg.DATA.TRAIN_JITTER_SCALES,
        cfg.OUTPUT_DIR,
    ) == (3.0, 5e-4, [50, 60], "7")


@pytest.mark.parametrize("kernels", ["slow", "[1,1,3,3]", "[3,[3,1],[3,1],[1,3]]"])
def test_temporal_kernels_are_a_name_or_a_list(kernels: str, tmp_path: Path) -> None:
    cfg = load_config(DEMO, ["RESNET.TEMPORAL_KERNELS", kernels])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "config.yaml"))
    assert again == cfg
    stages = build.build_model(again).stages
    assert [stage[0].conv1.kernel_size[0] for stage in stages] == (
        [3, 3, 3, 1] if kernels.startswith("[3") else [1, 1, 3, 3]
    )


def test_network_keys_reach_the_network() -> None:
    text = """MODEL.ARCH resgroup RESNET.DEPTH 50 RESNET.TEMPORAL_STRIDES [1,2,1,1] RESNET.TEMPORAL_POOL 2
    RESNET.STEM_TEMPORAL_KERNEL 3
    RESNET.STEM_TEMPORAL_STRIDE 2 RESNET.STEM_POOL False MODEL.HEAD_PER_POSITION True
    MODEL.ACT_CHECKPOINT True DATA.TRAIN_CROP_SIZE 48"""
    net = build.build_model(load_config(DEMO, text.split()))
    assert (
        net.conv1.kernel_size[0],
        net.conv1.stride[0],
        net.layer2[0].conv2.stride[0],
        net.temporal_pool.kernel_size,
    ) == (3, 2, 2, (2, 1, 1))
    assert (net.plan.stem.pool, net.plan.head_window, net.layer4.checkpoint_activations) == (
        False,
        (1, 3, 3),
        True,
    )
    net = build.build_model(
        load_config(DEMO, ["RESNET.SHORTCUT_TEMPORAL_KERNEL", "1", "RESNET.RECTIFY_IDENTITY", "False"])
    )
    assert net.layer3[0].downsample[0].kernel_size == (1, 3, 3)
    assert not net.layer1[1].rectify_identity


def test_rates_of_steps() -> None:
    text = """SOLVER.LR_POLICY steps_with_relative_lrs SOLVER.STEPS [0,5.5] SOLVER.LRS [1,0.5]
    SOLVER.WARMUP_EPOCHS 1"""
    rate = build.build_schedule(load_config(DEMO, text.split()))
    assert [rate(epoch / 11) for epoch in (0, 0.5, 1, 5.4, 5.5)] == pytest.approx(
        [0.01, 0.02, 0.03, 0.03, 0.015]
    )


def test_networks_of_three_stages() -> None:
    stages = "RESNET.STAGES 3 RESNET.WIDTH_PER_GROUP 4 RESNET.ZERO_INIT_RESIDUAL True MODEL.DROPOUT_RATE 0.3"
    net = build.build_model(load_config(DEMO, ["RESNET.DEPTH", "29", *stages.split()]))
    assert [len(stage) for stage in net.stages] == [3, 3, 3]
    assert (net.conv1.kernel_size, net.dropout.p, net.fc.out_features) == ((3, 3, 3), 0.3, 8)
    assert not net.layer1[1].conv3.weight.any()
    for wrong, message in {
        "RESNET.TEMPORAL_POOL 2": "RESNET.TEMPORAL_POOL is 2, but RESNET.STAGES is 3; leave it out",
        "RESNET.DEPTH 30": "unknown depth 30 for small images; expected 9n\\+2",
    }.items():
        with pytest.raises(InputError, match=message):
            build.build_model(load_config(DEMO, [*stages.split(), *wrong.split()]))


@pytest.mark.parametrize(
    "network",
    [
        "MODEL.ARCH iresnet",
        "MODEL.ARCH resnet",
        "MODEL.ARCH resnet RESNET.STEM_POOL False",
        "MODEL.ARCH iresnet RESNET.TEMPORAL_KERNELS c2d RESNET.STEM_TEMPORAL_STRIDE 2",
        "MODEL.ARCH resstage RESNET.TEMPORAL_STRIDES [2,1,1,1] RESNET.STEM_POOL False",
    ],
)
def test_windows_of_the_head_are_the_features_of_a_training_clip(network: str) -> None:
    overrides = f"{network} MODEL.HEAD_PER_POSITION True DATA.TRAIN_CROP_SIZE 48 DATA.NUM_FRAMES 8"
    with torch.device("meta"):
        net = build.build_model(load_config(DEMO, overrides.split()))
        sizes = []
        net.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
        net(torch.empty(1, 3, 8, 48, 48))
    assert net.plan.head_window == tuple(sizes[0])


def test_data_keys_reach_their_objects() -> None:
    text = """DATA.SAMPLER slowfast DATA.TARGET_FPS 30 DATA.USE_OFFSET_SAMPLING True DATA.TRAIN_JITTER_RATE 5
    DATA.INV_UNIFORM_SAMPLE True
    AUG.NUM_SAMPLE 2 AUG.COLOR_JITTER 0.4 AUG.RAND_MAGNITUDE 7 AUG.RE_PROB 0.25
    MIXUP.ENABLE True MIXUP.ALPHA 0.3 MIXUP.CUTMIX_ALPHA 0.6
    MIXUP.PROB 0.9 MIXUP.SWITCH_PROB 0.7 MIXUP.LABEL_SMOOTH_VALUE 0.2 DATA.CLASS_NAMES"""
    cfg = load_config(DEMO, [*text.split(), ""])
    data = build.build_training_data(cfg, [])
    assert data.sampler == SlowFastSampler(2, 30.0, True)
    assert next(iter(build.build_batches(cfg, 16)))[0][2:] == (8, 48, 5)
    assert build.build_test_data(cfg, []).sampler == SlowFastSampler(2, 30.0, True)
    assert data.open_video.keywords["backend"] == "pyav"
    assert data.crop == ShortSideJitter(48, 48, 60, inverse=True)
    assert data.num_samples == 2
    jitter, rand_augment, erasing = data.augment.transforms
    assert jitter.transform.brightness == (0.6, 1.4)
    assert rand_augment.transform.magnitude == 7
    assert erasing == RandomErasing(0.25)
    assert build.build_targets(cfg) == Mixer(8, 0.3, 0.6, 0.9, 0.7, 0.2)
    assert build.build_targets(load_config(DEMO)) is plain_targets
    assert build.build_targets(load_config(DEMO, ["MIXUP.LABEL_SMOOTH_VALUE", "0.1"])).probability == 0
    relative = [
        "DATA.TRAIN_JITTER_SCALES_RELATIVE",
        "[0.08,1]",
        "DATA.TRAIN_JITTER_ASPECT_RELATIVE",
        "[0.75,1.33]",
        "DATA.CLASS_NAMES",
        "",
    ]
    assert build.build_training_data(load_config(DEMO, relative), []).crop == RandomResizedCrop(
        (0.08, 1.0), (0.75, 1.33)
    )


def test_flips_of_a_config_know_the_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("turn left\nturn right\nmove right\nstay\n")
    names = ["DATA.CLASS_NAMES", str(tmp_path / "names.txt"), "MODEL.NUM_CLASSES", "4"]
    assert build.build_training_data(load_config(DEMO, names), []).flip is None
    expected = RandomFlip({0: 1, 1: 0}, frozenset({2}))
    assert (
        build.build_training_data(load_config(DEMO, [*names, "DATA.RANDOM_FLIP", "True"]), []).flip
        == expected
    )
    (tmp_path / "something-something-v2-labels.json").write_text(
        '{"turn left": "0", "move right": "2", "turn right": "1", "stay": "3"}'
    )
    frames = [
        "DATA.LIST_FORMAT",
        "frames",
        "DATA.PATH_TO_DATA_DIR",
        str(tmp_path),
        "DATA.CLASS_NAMES",
        "",
        "MODEL.NUM_CLASSES",
        "4",
    ]
    assert (
        build.build_training_data(load_config(DEMO, [*frames, "DATA.RANDOM_FLIP", "True"]), []).flip
        == expected
    )


def test_resolved_config_loads_again(tmp_path: Path) -> None:
    cfg = load_config(DEMO)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config(str(tmp_path / "config.yaml")) == cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("SOLVER.BAS_LR 1", "unknown key SOLVER.BAS_LR in the command line; did you mean SOLVER.BASE_LR?"),
        ("DATA.MAX_BAD_SHARE 0", "unknown key DATA.MAX_BAD_SHARE .*; did you mean DATA.MAX_BAD_FRACTION?"),
        ("TRAIN 1", "unknown key TRAIN in the command line; did you mean TRAIN"),
        ("SOLVER.BASE_LR fast", "SOLVER.BASE_LR in the command line is 'fast'; expected a number"),
        ("TRAIN.BATCH_SIZE 1.5", "expected a whole number"),
        ("TRAIN.ENABLE 1", "expected True or False"),
        ("DATA.TRAIN_JITTER_SCALES 256", "expected a list of whole numbers|expected a list like"),
        ("DATA.TRAIN_JITTER_SCALES [256,a]", "expected a list"),
        ("DATA.NUM_FRAMES", "override DATA.NUM_FRAMES has no value"),
        ("MODEL.ARCH resnext", "MODEL.ARCH is resnext; expected one of resnet, resstage, iresnet"),
        ("RESNET.DEPTH 51", "RESNET.DEPTH is 51; expected one of 18, 34, 50, 101, 152, 200, 302, 404, 1001"),
        ("MODEL.ARCH resgroup", "RESNET.DEPTH is 18; expected one of 50, 101, 152"),
        (
            "TRAIN.CHECKPOINT_INFLATE True",
            "TRAIN.CHECKPOINT_INFLATE is True; expected one of average, center",
        ),
        (
            "RESNET.TEMPORAL_KERNELS fast",
            "RESNET: temporal_kernels is 'fast'; expected full, i3d, slow, c2d, or numbers for four stages",
        ),
        ("RESNET.TEMPORAL_KERNELS [3,3]", "or numbers for four stages"),
        ("RESNET.TEMPORAL_KERNELS [3,3.0,3,3]", "RESNET: temporal_kernels is .*expected"),
        ("RESNET.TEMPORAL_POOL -1", "RESNET.TEMPORAL_POOL is -1; expected a number in"),
        ("RESNET.STEM_TEMPORAL_KERNEL 4", "expected odd numbers"),
        ("RESNET.STEM_TEMPORAL_STRIDE 0", "expected a number in"),
        ("RESNET.SHORTCUT_TEMPORAL_KERNEL 2", "expected an odd number, or 0"),
        ("DATA.TRAIN_CROP_SIZE 64", "DATA.TRAIN_CROP_SIZE 64 is larger than the smallest short side 48"),
        ("DATA.TRAIN_JITTER_SCALES []", "expected the smallest and the largest"),
        ("DATA.TEST_SHORT_SIDE 40", "DATA.TEST_SHORT_SIDE 40 is smaller than DATA.TEST_CROP_SIZE 48"),
        ("DATA.NUM_FRAMES 2", "DATA.NUM_FRAMES 2 is less than 4, the product of the temporal strides"),
        ("RESNET.TEMPORAL_KERNELS [3,3,2,3]", "expected odd numbers"),
        ("RESNET.TEMPORAL_STRIDES [1,1,2]", "expected four positive numbers"),
        ("SOLVER.WARMUP_EPOCHS 11", "leaves nothing of SOLVER.MAX_EPOCH"),
        ("SOLVER.COSINE_END_LR 0.5", "is not below SOLVER.BASE_LR"),
        ("SOLVER.LR_POLICY steps_with_relative_lrs", "do not fit"),
        ("TEST.NUM_SPATIAL_CROPS 2", "expected one of 1, 3"),
        ("TRAIN.BATCH_SIZE 0", "expected a number in"),
        ("DATA.MEAN [0.5]", "expected three numbers"),
        ("TRAIN.ENABLE False TEST.ENABLE False", "nothing to do"),
        ("DATA.SAMPLER slowfast", "needs DATA.TARGET_FPS"),
        (
            "DATA.TRAIN_JITTER_RATE 1",
            "DATA.TRAIN_JITTER_RATE is 1; expected at least DATA.SAMPLING_RATE 2, or 0",
        ),
        (
            "DATA.SAMPLER segments DATA.TARGET_FPS 30",
            "DATA.TARGET_FPS is 30.0, but DATA.SAMPLER segments takes no rate",
        ),
        ("DATA.USE_OFFSET_SAMPLING True", "expected it with DATA.SAMPLER slowfast alone"),
        ("DATA.DECODING_BACKEND opencv", "expected one of pyav, torchcodec, decord"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.1,1]", "expected the smallest and the largest of each"),
        ("AUG.NUM_SAMPLE 3", "TRAIN.BATCH_SIZE 16 is not a multiple of AUG.NUM_SAMPLE 3"),
        ("AUG.RAND_MAGNITUDE 31", "expected a number in"),
        ("AUG.RE_PROB 2", "expected a number in"),
        ("MIXUP.LABEL_SMOOTH_VALUE 1", "expected a number in"),
        ("MIXUP.ENABLE True MIXUP.ALPHA 0 MIXUP.CUTMIX_ALPHA 0", "expected numbers of which one is above 0"),
        ("DATA_LOADER.TIMEOUT -1", "expected a number in"),
    ],
)
def test_wrong_values_are_one_clear_line(overrides: str, message: str) -> None:
    with pytest.raises(
        InputError, match=f"^[^\n]*({message})[^\n]*$".replace("[256,", r"\[256,").replace("?$", r"\?$")
    ):
        load_config(DEMO, overrides.split())


def test_wrong_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent.yaml: No such file"):
        load_config(str(tmp_path / "absent.yaml"))
    for text, message in [
        ("TRAIN: [", "is not plain YAML"),
        ("TRAIN: !!python/object/apply:os.system ['true']", "is not plain YAML"),
        ("just text", "holds no keys"),
        ("SOLVER:\n  BASE_LR: 1e-2\n  LRR: 2", r"unknown key SOLVER.LRR in .*; did you mean SOLVER.L"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
            load_config(str(tmp_path / "c.yaml"))


def test_base_is_inherited() -> None:
    cfg = load_config(str(ROOT / "configs/kinetics/R3D50.yaml"))
    assert (cfg.MODEL.ARCH, cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS) == ("resnet", 196, 34.0)
