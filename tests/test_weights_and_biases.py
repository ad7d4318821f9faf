"""Records at Weights & Biases: offline, what its own files hold; and that its failures end no run."""

from __future__ import annotations

import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import DEMO, RunNet, run_together

from video_iresnet.config import leaves, load_config
from video_iresnet.runtime.errors import InputError

SHORT = ["SOLVER.WARMUP_EPOCHS", "0", "WANDB.ENABLE", "True"]


def stored(path: Path) -> Iterator[Any]:
    """The records in a file of wandb: after 7 bytes of header, LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + length]
        assert checksum == zlib.crc32(part, zlib.crc32(bytes([kind])))
        place += 7 + length
        whole += part
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def offline_runs(folder: Path) -> list[list[Any]]:
    """The records of each offline run, oldest first, once wandb has written all of them."""
    import wandb

    wandb.teardown()
    return [list(stored(path)) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]


def history(records: list[Any]) -> list[dict[str, Any]]:
    """What was logged, without what wandb adds."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return rows


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "json_stats.log").read_text().splitlines()
    return [json.loads(line.removeprefix("json_stats: ")) for line in lines]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")  # of its dependencies
def test_the_records_of_json_stats_are_sent(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    """A resumed run continues the same run there."""
    command = [*small, *SHORT, "OUTPUT_DIR", str(tmp_path), "WANDB.PROJECT", "shapes"]
    assert run_net(*command, "SOLVER.MAX_EPOCH", "1") == 0
    first = logged(tmp_path)
    assert run_net(*command, "SOLVER.MAX_EPOCH", "2") == 0
    both = logged(tmp_path)
    runs = offline_runs(tmp_path)
    identity = (tmp_path / "wandb_id").read_text().strip()
    for records, expected, steps in [
        (runs[0], first, [1, 2, 3, 3, 3, 0]), (runs[1], both[len(first) :], [4, 5, 6, 6, 6, 0]),
    ]:  # fmt: skip
        rows = history(records)
        assert [row.pop("step") for row in rows] == steps
        for row, record in zip(rows, expected, strict=True):
            kind = record.pop("_type").rstrip("_")
            assert row == {f"{kind}/{name}": value for name, value in record.items()}
        (about,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (about.run_id, about.project, about.display_name) == (identity, "shapes", tmp_path.name)
        (code,) = (record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit")
        assert code == 0
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    expected = dict(leaves(load_config(str(tmp_path / "config.yaml"))))
    assert {key: value for key, value in config.items() if key in expected} == expected
    assert config["stamp"]["torch"] == torch.__version__
    log = (tmp_path / "stdout.log").read_text()
    assert re.search(rf"Weights & Biases: offline; to send the records: wandb sync {tmp_path}/wandb/off", log)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_one_of_two_processes_sends(small: list[str], tmp_path: Path) -> None:
    more = [*SHORT, "SOLVER.MAX_EPOCH", "1", "TEST.ENABLE", "False"]
    run_together(2, "tools/run_net.py", "--cfg", DEMO, *small, *more, "OUTPUT_DIR", str(tmp_path))
    (records,) = offline_runs(tmp_path)
    assert len(history(records)) == len(logged(tmp_path)) == 5


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_a_run_without_a_login_goes_on(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    assert run_net(*small, *SHORT, "OUTPUT_DIR", str(tmp_path / "out"), "TEST.ENABLE", "False") == 0
    log = (tmp_path / "out/stdout.log").read_text()
    assert (
        len(re.findall(r"\[WARNING\].*Weights & Biases: No API key configured.*; the run goes on", log)) == 1
    )
    assert len(logged(tmp_path / "out")) == 9


class FakeRun:
    """Notes what is sent; `failing`: the calls that raise."""

    disabled, offline, url, dir = False, False, "https://example.org/r", ""

    def __init__(self, failing: set[str]) -> None:
        self.failing, self.calls = failing, []

    def _call(self, name: str, *values: Any) -> None:
        self.calls.append((name, *values))
        if name in self.failing:
            raise RuntimeError(f"{name} is broken\nin many lines")

    def define_metric(self, name: str, step_metric: str) -> None:
        self._call("define_metric", name, step_metric)

    def log(self, values: dict[str, Any]) -> None:
        self._call("log", values)

    def finish(self, exit_code: int) -> None:
        self._call("finish", exit_code)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *failing: str) -> FakeRun:
    run = FakeRun(set(failing))

    def init(**options: Any) -> FakeRun:
        run._call("init", options)
        return run

    module = SimpleNamespace(init=init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_one_warning(
    failing: str, small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch, failing)
    assert run_net(*small, *SHORT, "OUTPUT_DIR", str(tmp_path)) == 0
    log = (tmp_path / "stdout.log").read_text()
    line = rf"\[WARNING\].*: Weights & Biases: {failing} is broken; the run goes on, and sends nothing more\n"
    assert len(re.findall(line, log)) == log.count("WARNING") == 1
    assert [name for name, *_ in fake.calls].count(failing) == 1
    assert fake.calls[-1][0] == failing
    assert len(logged(tmp_path)) == 10


def test_a_run_that_fails_is_failed_there_too(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_wandb(monkeypatch)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint_epoch_00001.pyth").write_text("damaged")
    assert run_net(*small, *SHORT, "OUTPUT_DIR", str(tmp_path)) == 1
    assert fake.calls[-1] == ("finish", 1)
    (options,) = (call[1] for call in fake.calls if call[0] == "init")
    assert (options["resume"], options["allow_val_change"], options["dir"]) == ("allow", True, str(tmp_path))
    assert "https://example.org/r" in (tmp_path / "stdout.log").read_text()


def test_a_missing_package_is_named(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_net(*small, *SHORT, "OUTPUT_DIR", str(tmp_path)) == 1
    error = r"error: WANDB.ENABLE needs a package that cannot be loaded \(.*\); pip install '.*', or .*\n"
    assert re.fullmatch(error, capsys.readouterr().err)
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "TRAIN.ENABLE", "False") == 1  # there are no weights
    assert "WANDB" not in capsys.readouterr().err


def test_a_project_has_a_name(small: list[str]) -> None:
    with pytest.raises(InputError, match=r"WANDB.PROJECT is empty; name a project"):
        load_config(DEMO, [*small, "WANDB.ENABLE", "True", "WANDB.PROJECT", " "])
