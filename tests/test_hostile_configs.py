"""Configs and lists that are damaged or hostile: one line each, soon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import DEMO, RunNet

from video_iresnet import build
from video_iresnet.config import NAME_OR_LIST, NUMBER_LISTS, RANGES, default_config, load_config
from video_iresnet.data.records import (
    read_class_names,
    read_frame_list,
    read_json_classes,
    read_json_labels,
    read_records,
    read_tsm_list,
)
from video_iresnet.runtime.errors import InputError

FILES = {
    "empty": (b"", "holds no keys"),
    "a number": (b"7", "holds no keys"),
    "Latin-1": ("OUTPUT_DIR: f\u00fc".encode("latin-1"), "cannot read .*c.yaml: .*utf-8"),
    "UTF-16": ("OUTPUT_DIR: f".encode("utf-16"), "cannot read .*c.yaml: .*utf-8"),
    "NUL": (b"OUTPUT_DIR: a\0b", "not plain YAML: .*not allowed"),
    "escaped NUL": (b'OUTPUT_DIR: "a\\0b"', r"OUTPUT_DIR in .* is 'a\\x00b'; expected a text without NUL"),
    "itself as base": (b"_BASE_: c.yaml", "_BASE_ in .*c.yaml is c.yaml, which is based on"),
    "a cycle": (b"_BASE_: b.yaml", "_BASE_ in .*b.yaml is ./c.yaml, which is based on .*b.yaml itself"),
    "no base": (b"_BASE_: gone.yaml", "_BASE_ in .*c.yaml is gone.yaml, but .*gone.yaml does not exist"),
    "a number as base": (b"_BASE_: 3", "_BASE_ in .*c.yaml is 3; expected the path of a config"),
    "keys as base": (b"_BASE_: {a: 1}", "_BASE_ in .*c.yaml is {'a': 1}; expected the path"),
    "NUL in a base": (b'_BASE_: "a\\0b"', "_BASE_ in .*does not exist"),
    "a folder as base": (b"_BASE_: .", "is no regular file"),
    "brackets": (b"SOLVER: " + b"[" * 50_000, "nested too deeply"),
    "deep keys": (b"{a: " * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
    "a key twice": (b"LOG_PERIOD: 1\nLOG_PERIOD: 2", "key LOG_PERIOD comes twice.*line 2"),
    "a section twice": (b"TRAIN:\n  ENABLE: 1\nTRAIN:\n  ENABLE: 0", "key TRAIN comes twice.*line 3"),
    "digits": (b"LOG_PERIOD: " + b"9" * 5_000, "a number of more than 1000 digits"),
    "hex digits": (b"LOG_PERIOD: 0x" + b"f" * 50_000, "a number of more than 1000 digits"),
    "a large float": (b"SOLVER: {BASE_LR: " + b"9" * 900 + b"}", "SOLVER.BASE_LR in .* expected a smaller"),
    "aliases": (b"a: &a [1, 1]\nb: &b [*a, *a]\nSOLVER: {STEPS: *b}", "an alias of a list"),
    "an endless alias": (b"a: &a {b: *a}", "an alias of a list or of keys"),
    "an odd tag": (b"LOG_PERIOD: !!timestamp x", "not plain YAML"),
    "a list as key": (b"? [1, 2]\n: 3", "not plain YAML"),
    "a date as key": (b"2001-01-01: 3", "unknown key 2001-01-01"),
    "a NUL in a list": (b'DATA: {TRAIN_LIST: "a\\0.csv"}', "expected a text without NUL"),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_are_one_clear_line(name: str, tmp_path: Path) -> None:
    contents, message = FILES[name]
    (tmp_path / "c.yaml").write_bytes(contents)
    (tmp_path / "b.yaml").write_text("_BASE_: [./c.yaml]")
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        load_config(str(tmp_path / "c.yaml"))


def test_bases_may_be_several_and_an_error_names_the_file_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"_BASE_: {DEMO}\nLOG_PERIOD: &period 3\nTRAIN: {{EVAL_PERIOD: *period}}"
    )
    (tmp_path / "b.yaml").write_text("LOG_PERIOD: 4\nRNG_SEED: 5")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nRNG_SEED: 6")
    cfg = load_config(str(tmp_path / "c.yaml"))
    assert (cfg.LOG_PERIOD, cfg.TRAIN.EVAL_PERIOD, cfg.RNG_SEED, cfg.MODEL.NUM_CLASSES) == (4, 3, 6, 8)
    (tmp_path / "b.yaml").write_text("LOGS: 4")
    with pytest.raises(InputError, match=r"unknown key LOGS in .*b.yaml"):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("SOLVER.BASE_LR inf", r"SOLVER.BASE_LR is inf; expected a number in \(0, 1000\]|is 'inf'"),
        ("SOLVER.BASE_LR 1e999", r"SOLVER.BASE_LR is inf; expected a number in \(0, 1000\]"),
        ("SOLVER.BASE_LR 0", r"expected a number in \(0, 1000\]"),
        ("SOLVER.MOMENTUM 2", r"SOLVER.MOMENTUM is 2.0; expected a number in \[0, 1\)"),
        ("SOLVER.MOMENTUM 1", r"expected a number in \[0, 1\)"),
        ("SOLVER.COSINE_END_LR -5", r"SOLVER.COSINE_END_LR is -5.0; expected a number in \[0, 1000\]"),
        ("DATA.TEST_SHORT_SIDE 100000", r"DATA.TEST_SHORT_SIDE is 100000; expected a number in \[0, 4096\]"),
        ("DATA.NUM_FRAMES 1000000000", r"DATA.NUM_FRAMES is 1000000000; expected a number in \[1, 10000\]"),
        ("TRAIN.BATCH_SIZE 1000000000000", "TRAIN.BATCH_SIZE is 1000000000000; expected a number"),
        ("TEST.BATCH_SIZE 1000000000000", "TEST.BATCH_SIZE is 1000000000000; expected a number"),
        ("MODEL.NUM_CLASSES 1000000000", "MODEL.NUM_CLASSES is 1000000000; expected"),
        ("DATA.MEAN [0,0,1e999]", r"DATA.MEAN is \[0.0, 0.0, inf\]; expected numbers in \[0, 1\]"),
        ("DATA.STD [1,1,0]", r"expected numbers in \(0, 100\]"),
        ("RESNET.TEMPORAL_KERNELS [3,[3,1001],3,3]", r"expected numbers in \[0, 99\]"),
        (f"LOG_PERIOD {'9' * 2000}", "expected a whole number"),
        (f"LOG_PERIOD 0x{'f' * 900}", r"expected a number in \[1, 1000000\]"),
        (f"DATA.STD [1,1,0x{'f' * 900}]", "expected a smaller number"),
        (f"SOLVER.STEPS {'[' * 900}", "expected a list"),
        (f"SOLVER.BASE_LR {'-' * 900}1", "expected a number"),
        ("SOLVER.STEPS {[]:1}", "expected a list"),
    ],
)
def test_numbers_have_a_sane_range(overrides: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*({message})[^\n]*$"):
        load_config(DEMO, overrides.split())


def test_every_number_has_a_range() -> None:
    """Or is one of a few choices."""
    cfg = default_config()
    values = {f"{section}.{key}": value for section, node in cfg.items() if isinstance(node, dict)
              for key, value in node.items()} | {key: cfg[key] for key in cfg}  # fmt: skip
    numeric = {key for key, value in values.items() if type(value) in (int, float, list)}
    ranged = [key for keys in RANGES.values() for key in keys]
    assert len(ranged) == len(set(ranged))
    assert numeric | set(NUMBER_LISTS) | set(NAME_OR_LIST) == {
        *ranged, "MODEL.DIMS", "RESNET.STAGES", "RESNET.DEPTH", "TEST.NUM_SPATIAL_CROPS"
    }  # fmt: skip


def test_numbers_of_training_do_not_matter_without_it() -> None:
    load_config(DEMO, ["TRAIN.ENABLE", "False", "AUG.RE_PROB", "2", "DATA.TRAIN_JITTER_SCALES", "[9,9]"])


def test_a_network_that_cannot_be_built_is_one_line() -> None:
    cfg = load_config(DEMO, ["MODEL.ARCH", "iresgroup", "RESNET.DEPTH", "50", "RESNET.WIDTH_PER_GROUP", "3"])
    with pytest.raises(InputError, match=r"this network cannot be built .*width 3 gives 12 channels"):
        build.build_model(cfg)


READERS = {
    "list": lambda path: read_records(path, root="", num_classes=8),
    "frames": lambda path: read_frame_list(path, root="", labels={"a": 1}),
    "folders": lambda path: read_tsm_list(path, root="", num_classes=8),
    "class names": read_class_names,
    "classes": read_json_classes,
    "split": lambda path: read_json_labels(path, ["a"]),
    "config": load_config,
}


@pytest.mark.parametrize("reader", READERS)
def test_pipes_devices_and_folders_are_no_texts(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=f"^{path} is no regular file"):
            READERS[reader](str(path))
    for path in ("a\0b", "n" * 100_000, "\ud8fe"):
        with pytest.raises(InputError, match=r"^cannot read [^\n]*$"):
            READERS[reader](path)


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        ("list", f"a.mp4 {'7' * 5000}", r"label 7{5000} of line 1 of .* is outside \[0, 8\)"),
        ("list", f"a.mp4 -{'7' * 5000}", r"label -7{5000} of line 1 of .* is outside \[0, 8\)"),
        ("folders", f"a 3 {'7' * 5000}", r"label .* of line 1 of .* is outside \[0, 8\)"),
        ("folders", f"a {'7' * 5000} 3", "line 1 of .* expected `folder frames label`"),
        ("folders", f"a {'7' * 30} 3", "line 1 of .* expected `folder frames label`"),
        ("frames", f"original_vido_id b\na 0 0 a_{'7' * 5000}.jpg x", "has no number"),
        ("classes", "[" * 100_000, "nested too deeply"),
        ("classes", f'{{"a": {"7" * 5000}}}', "is not JSON"),
        ("classes", json.dumps({"a": "7" * 5000}), "does not hold classes"),
        ("split", "[" * 100_000, "nested too deeply"),
    ],
)
def test_absurd_numbers_in_lists(reader: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        READERS[reader](str(tmp_path / "list.txt"))


def test_class_numbers_may_be_absurd(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(f"{'7' * 5000} a\n2 b")
    assert read_class_names(str(tmp_path / "names.txt")).names == ("a", "b")


@pytest.mark.parametrize(
    "key", ["OUTPUT_DIR", "DATA.TRAIN_LIST", "DATA.CLASS_NAMES", "DATA.PATH_TO_DATA_DIR"]
)
def test_paths_may_hold_anything(
    key: str, small: list[str], tmp_path: Path, run_net: RunNet, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("a\0b", f"{tmp_path}/file/\x1b[2J\n", "n" * 100_000, f"{tmp_path}/file/\udcff"):
        assert run_net(*small, "OUTPUT_DIR", str(tmp_path), key, name) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        assert text[:-1].isprintable()
        assert len(text) < 2100
