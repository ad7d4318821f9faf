"""What the doctor finds on machines that lack something, and how its tool ends."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import ROOT, load_script
from torch import Tensor

from video_iresnet.data import decode
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.doctor import decoders, devices, finding, machine
from video_iresnet.doctor.finding import OK, PROBLEM, WARNING, Check, Finding, examine, run_check, worst

HERE = Path()
Patch = pytest.MonkeyPatch


def only(check: Check, folder: Path = HERE) -> Finding:
    """The one thing that a check finds; what is not ok comes with a remedy."""
    (found,) = run_check(check, folder)
    assert bool(found.remedy) == (found.status != OK)
    return found


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/doctor.py")


def test_this_machine(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What tests need works here; the table and the file say the same."""
    path = tmp_path / "a.json"
    code = tool.main(["--folder", str(tmp_path / "new"), "--json", str(path)])
    stored = json.loads(path.read_text())
    found = {row["name"]: row for row in stored["findings"]}
    assert len(found) == len(stored["findings"]) >= 15
    for name in ("Python", "FFmpeg", "decoder pyav", "training on cpu", "worker"):
        assert found[name]["status"] == OK, found[name]
    assert "40 of 40 frames, within 0 of 255" in found["decoder pyav"]["found"]
    assert not [row for row in found.values() if "check failed" in row["found"]]
    assert code == (stored["status"] == PROBLEM)
    text = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} +{row['status']} ", text, re.M) for name, row in found.items())


@pytest.mark.parametrize(("statuses", "code"), [([OK], 0), ([WARNING, OK], 0), ([OK, PROBLEM, WARNING], 1)])
def test_exit_statuses(
    statuses: list[str], code: int, tool: ModuleType, tmp_path: Path, monkeypatch: Patch
) -> None:
    findings = [Finding(f"name {i}", status, "found") for i, status in enumerate(statuses)]
    monkeypatch.setattr(tool, "examine", lambda folder: iter(findings))
    assert tool.main(["--json", str(tmp_path / "a.json")]) == code
    assert json.loads((tmp_path / "a.json").read_text())["status"] == worst(findings)


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_table_fits(columns: int, tool: ModuleType) -> None:
    found = Finding("decoder torchcodec", WARNING, "word " * 40, "remedy " * 20)
    lines = tool.table([found, Finding("a", OK, "b")], columns).splitlines()
    assert max(map(len, lines)) <= min(max(columns, 60), 120)
    assert "word -> remedy" in " ".join(" ".join(lines).split())


def test_what_cannot_be_imported_or_fails_is_a_problem(monkeypatch: Patch) -> None:
    def broken(folder: Path) -> Iterator[Finding]:
        yield Finding("first", OK, "")
        raise ValueError("no\nway")

    monkeypatch.setattr(machine, "CHECKS", (broken,))
    found = list(examine(HERE, ("machine", "gone")))
    assert [one.status for one in found] == [OK, PROBLEM, PROBLEM]
    assert found[1][:3] == ("broken", PROBLEM, "this check failed: ValueError: no")
    assert "cannot be looked at: ModuleNotFoundError: No module named" in found[2].found
    assert worst([]) == OK


def test_without_torch_the_machine_is_still_looked_at() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['av'] = None; from pathlib import Path\n"
    code += "from video_iresnet.doctor.finding import examine\n"
    code += "for one in examine(Path('.')): print(*one[:3], sep='|')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name: rest for name, _, rest in (row.partition("|") for row in done.stdout.splitlines())}
    assert found["Python"].startswith("ok|")
    assert found["memory"].partition("|")[0] in (OK, WARNING, PROBLEM)
    assert found["devices"].startswith("problem|cannot be looked at: ModuleNotFoundError: import of torch")
    assert found["decoders"].startswith("problem|cannot be looked at: ModuleNotFoundError: import of av")


@pytest.mark.parametrize(
    ("versions", "status"),
    [(((3, 12), (3, 14)), PROBLEM), (((3, 1), (3, 9)), WARNING), (((3, 1), (4, 0)), OK)],
)
def test_versions_of_python(
    versions: tuple[tuple[int, int], tuple[int, int]], status: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(machine, "PYTHON", versions)
    monkeypatch.setattr(sys, "version_info", (3, 11, 2))
    assert only(machine.python).status == status


@pytest.mark.parametrize(("torch_version", "status"), [("2.7.0+cpu", OK), ("2.8.0", PROBLEM)])
def test_a_torchvision_for_another_torch(torch_version: str, status: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        machine, "metadata",
        SimpleNamespace(
            version={"torch": torch_version, "torchvision": "0.22.0"}.__getitem__,
            requires=lambda name: ["numpy", "torch==2.7.0", 'scipy; extra == "scipy"'],
        ),
    )  # fmt: skip
    found = only(machine.torch_versions)
    assert found.status == status
    assert found.remedy == ("" if status == OK else "pip install torch==2.7.0 torchvision==0.22.0")


@pytest.mark.parametrize(
    ("free", "status"), [(8.0, OK), (0.5, WARNING), (0.0625, PROBLEM)]
)  # Docker's default is 0.0625
def test_small_shared_memory(free: float, status: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "SHM", HERE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 2**30, total=2**33))
    found = only(machine.shared_memory)
    assert found.status == status
    assert found.found == f"{free:.2f} GiB free of 8.00"
    assert ("--shm-size" in found.remedy) == (status != OK)


@pytest.mark.parametrize(("free", "status"), [(50.0, OK), (5.0, WARNING), (0.5, PROBLEM)])
def test_a_full_disk(free: float, status: str, monkeypatch: Patch, tmp_path: Path) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free * 2**30, total=2**40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert only(machine.disk, tmp_path / "not/yet").status == status
    assert asked == [tmp_path]


def test_a_disk_that_cannot_be_written(monkeypatch: Patch, tmp_path: Path) -> None:
    def refuse(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = only(machine.disk, tmp_path)
    assert (found.status, found.found) == (PROBLEM, f"{tmp_path} cannot be written (Read-only file system)")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cores_of_a_container(
    files: dict[str, str], quota: float | None, monkeypatch: Patch, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.cpu_quota() == quota
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    found = only(machine.cores)
    assert found.status == (WARNING if quota else OK)
    assert not quota or f"NUM_WORKERS to {int(quota)} at most" in found.remedy


def test_one_core(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    assert only(machine.cores).status == WARNING


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "536870912\n", 0.5),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "3221225472\n", 3),
    ],
)
def test_memory_of_a_container(
    name: str, text: str, limit: float | None, monkeypatch: Patch, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory_limit() == limit
    found = only(machine.memory)
    if limit:
        assert found.found.endswith(f" of {limit:.2f}")
        assert found.status == (PROBLEM if limit < 1 else WARNING)


@pytest.mark.parametrize(
    ("limit", "most", "status", "remedy"),
    [
        (256, 8192, WARNING, "ulimit -n 1024, or up to the hard limit"),
        (256, resource.RLIM_INFINITY, WARNING, "ulimit -n 1024, or up to the hard limit"),
        (256, 256, WARNING, "ask for a higher limit (nofile)"),
        (1024, 8192, OK, ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, OK, ""),
    ],
)
def test_open_files(limit: int, most: int, status: str, remedy: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, most))
    found = only(machine.open_files)
    assert (found.status, found.remedy) == (status, remedy)


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    assert only(devices.gpus).status == WARNING
    (tmp_path / "nvidiactl").touch()  # not a GPU
    assert only(devices.gpus).status == WARNING
    (tmp_path / "nvidia0").touch()
    found = only(devices.gpus)
    assert (found.status, "driver" in found.remedy) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("version", "gpu", "status", "name"),
    [
        (91002, True, WARNING, "9.10.2"),
        (91500, True, OK, "9.15.0"),
        (91002, False, OK, "9.10.2"),
        (0, False, OK, "none"),
    ],
)
def test_releases_of_cudnn(version: int, gpu: bool, status: str, name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(devices, "cudnn_version", lambda: version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = only(devices.cudnn)
    assert found.status == status
    assert found.found.startswith(name)


@pytest.mark.parametrize(
    ("supported", "bad", "status", "words"),
    [
        (False, {}, WARNING, "no instructions"),
        (True, {"a": "the output of x is wrong", "b": "y"}, WARNING, "2 convolutions .* the output of x is"),
        (True, {}, OK, "right, and takes"),
    ],
)
def test_half_precision(
    supported: bool, bad: dict[str, str], status: str, words: str, monkeypatch: Patch
) -> None:
    """It measures every kind of convolution of the network, with both gradients but for the first layer."""
    measured = []

    def probe(network: object, layers: Sequence[object], *more: object) -> list[SimpleNamespace]:
        measured.extend(layers)
        return [SimpleNamespace(layer=layer, seconds=(2.0, 1.0)) for layer in layers]

    monkeypatch.setattr(devices, "supports", lambda device, dtype: supported)
    monkeypatch.setattr(devices, "probe", probe)
    monkeypatch.setattr(devices, "problems", lambda results, dtype: bad)
    found = devices.bfloat16(devices.CPU)
    assert found.status == status
    assert re.search(words, found.found)
    assert sum(layer.input_gradient for layer in measured) == len(measured) - supported
    assert ("MIXED_PRECISION" in found.remedy) == (status == WARNING)


@pytest.mark.parametrize(
    ("second", "status", "words"),
    [
        ((1.5, 1.2), OK, "loss 1.5000, then 1.2000"),
        ((1.5, math.nan), PROBLEM, "does not learn"),
        ((1.5, 1.6), PROBLEM, "does not learn"),
        ((1.5, 1.3), PROBLEM, "the CPU's differ by 0.1"),
    ],
)
def test_training_on_a_second_device(
    second: tuple[float, float], status: str, words: str, monkeypatch: Patch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(devices, "all_devices", lambda: [devices.CPU, gpu])
    monkeypatch.setattr(devices, "losses", lambda device: second if device == gpu else (1.5, 1.2))
    first, last = run_check(devices.training_step, HERE)
    assert first == ("training on cpu", OK, "loss 1.5000, then 1.2000", "")
    assert (last.name, last.status) == ("training on cuda:0", status)
    assert words in last.found


def test_losses_are_the_same_at_every_call() -> None:
    assert devices.losses(devices.CPU) == devices.losses(devices.CPU)


def full() -> None:
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def die() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize(("failure", "words"), [(full, "No space left on device"), (die, "exited unexp|Bus")])
def test_a_worker_without_shared_memory(
    failure: Callable[[], None], words: str, monkeypatch: Patch, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyTorch may see that it is full, or the kernel may end the worker."""

    class Failing(devices._Sample):
        def __getitem__(self, index: int) -> Tensor:
            failure()
            return torch.zeros(1)

    monkeypatch.setattr(devices, "_Sample", Failing)
    monkeypatch.setattr(devices, "SLOWEST_WORKER", 10.0)
    found = only(devices.worker)
    assert found.status == PROBLEM
    assert re.search(words, found.found)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("video") / "a.mp4")
    decoders.write_generated(path, "libx264")
    return path


def readers(change: Callable[[list[int]], list[int]], added: int = 0) -> type[PyAVReader]:
    """PyAV with other numbers of frames, or another brightness."""

    class Changed(PyAVReader):
        def read(self, indices: Sequence[int]) -> Tensor:
            return (super().read(change(list(indices))).int() + added).clamp(0, 255).byte()

    return Changed


@pytest.mark.parametrize(
    ("reader", "status"),
    [
        (readers(lambda numbers: numbers), OK),
        (readers(lambda numbers: numbers, added=1), OK),
        (readers(lambda numbers: numbers, added=2), PROBLEM),
        (readers(lambda numbers: [min(number + 1, 39) for number in numbers]), PROBLEM),
        (readers(sorted), PROBLEM),
    ],
)
def test_wrong_frames_of_a_decoder(
    reader: type[PyAVReader], status: str, generated: str, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(decode.BACKENDS, "decord", lambda: reader)
    monkeypatch.setattr(decoders, "version", lambda name: "1.0")
    found = decoders.decoder("decord", generated)
    assert found.status == status
    assert status == OK or found.found.startswith("wrong frames: 40 of 40 frames, within ")


def test_wrong_frames_of_pyav_are_seen_by_what_was_written(generated: str, monkeypatch: Patch) -> None:
    monkeypatch.setitem(decode.BACKENDS, "pyav", lambda: readers(lambda numbers: [0] * len(numbers)))
    found = decoders.decoder("pyav", generated)
    assert found.status == PROBLEM
    assert "within 0 of 255 of PyAV's, and " in found.found


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_a_missing_decoder(name: str, generated: str, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"video_iresnet.data.decode.{name}", raising=False)
    found = decoders.decoder(name, generated)
    assert found.status == WARNING
    assert re.match(rf"pip install '?[a-z_]*\[?{name}", found.remedy)
    assert found.remedy.endswith("; or leave DATA.DECODING_BACKEND pyav")


def test_a_decoder_that_leaves_the_video_to_pyav(generated: str, monkeypatch: Patch) -> None:
    """As decord does with MPEG-4."""
    pytest.importorskip("decord", reason="decord is not installed")
    path = generated.replace("a.mp4", "b.mp4")
    decoders.write_generated(path, "mpeg4")
    found = decoders.decoder("decord", path)
    assert (found.status, found.found) == (WARNING, "PyAV reads instead of it: mpeg4 in mov")
    assert decoders.decoder("pyav", path).status == OK


def test_an_ffmpeg_without_an_encoder(monkeypatch: Patch) -> None:
    assert only(decoders.ffmpeg).status == OK
    monkeypatch.setattr(decoders, "has_encoder", lambda: False)
    found = only(decoders.ffmpeg)
    assert (found.status, "moving_shapes.py" in found.remedy) == (WARNING, True)
    assert {one.status for one in run_check(decoders.decoders, HERE)} <= {OK, WARNING}


def test_the_modules_are_those_of_the_folder() -> None:
    folder = Path(finding.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "finding", *finding.MODULES}
