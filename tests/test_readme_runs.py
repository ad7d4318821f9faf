"""The commands of README.md run in order, as they stand there, with small videos and networks."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, start, write_video
from PIL import Image
from starts import Forked

PAGE = (ROOT / "README.md").read_text()
# What makes each training one of seconds; later overrides win.
SMALL = shlex.split(
    """NUM_GPUS 0 RESNET.DEPTH 18 RESNET.WIDTH_PER_GROUP 4 DATA.NUM_FRAMES 4 DATA.TRAIN_JITTER_SCALES [32,36]
    DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 DATA.TEST_SHORT_SIDE 32 DATA_LOADER.NUM_WORKERS 0
    TRAIN.BATCH_SIZE 4 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0 TEST.NUM_ENSEMBLE_VIEWS 2"""
)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(title: str) -> list[str]:
    """The command lines of a section, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", section(title), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone, for what the commands write."""
    for name in ("tools", "data_prep", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def started(command: str, clone: Path, *more: str) -> Forked:
    """Start a command of the page in a clone; torchrun with at most two processes, transcoding in its own."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        processes = words.index("--nproc-per-node") + 1
        words[processes] = "1" if "--nnodes" in words else "2"
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
        if "--nnodes" not in words:
            words.insert(3, "--standalone")
    assert words[0] == "python", command
    if any("run_net.py" in word for word in words):
        words += SMALL
    elif "data_prep/transcode.py" in words:
        words += ["--workers", "0"]
    return start(*words[1:], *more, cwd=clone, environment={"OMP_NUM_THREADS": "1"})


def run(command: str, clone: Path, *more: str) -> str:
    process = started(command, clone, *more)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, f"{command}\n{output}"
    return output


@pytest.mark.slow
def test_images(clone: Path) -> None:
    """From zips of small pictures to a report."""
    prepare, train, predict = commands("Images")
    (clone / "raw/cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        with zipfile.ZipFile(clone / f"raw/cifar10/{split}.zip", "w") as archive:
            for label in range(10):
                for number in range(2):
                    picture = io.BytesIO()
                    Image.new("RGB", (32, 32), (25 * label, 9, 9)).save(picture, "JPEG")
                    archive.writestr(f"{split}/class {label}/{number}.jpg", picture.getvalue())
    assert "train: 20 pictures" in run(prepare, clone)
    one = "RESNET.DEPTH 20 DATA.NUM_FRAMES 1 TEST.NUM_ENSEMBLE_VIEWS 1 DATA.TRAIN_JITTER_SCALES [32,32]"
    assert "20 videos, 0 failed; chance 10.00" in run(train, clone, *one.split())
    assert (clone / "output/cifar10_iresnet20_quick/report.html").exists()
    Image.new("RGB", (40, 50), (25, 9, 9)).save(clone / "new.png")
    assert re.search(r"new\.png\n +\d+\.\d\d%  class \d\n", run(predict, clone))


@pytest.mark.slow
def test_own_videos(clone: Path) -> None:
    """From a folder of class folders to a report and a prediction."""
    make, activate, *rest = commands("Your own videos")
    assert (make, activate) == ("make install", ". .venv/bin/activate")
    names = ["clap", "jump", "run", "sit", "wave"]
    for name in names:
        for number in range(10):
            write_video(clone / f"my_videos/{name}/{name}_{number}.mp4", 12)
    write_video(clone / "new.mp4", 30)
    *_, prediction = [run(command, clone) for command in rest]
    assert re.search(r"0:00.0 - 0:01.2 +\d+\.\d\d%  (" + "|".join(names) + ")", prediction)
    results = json.loads((clone / "output/mine/results.json").read_text())
    assert results["num_videos"] == 10
    assert results["num_failed"] == 0
    assert (clone / "output/mine/report.html").exists()
    (python,) = re.findall(r"```python\n(.*?)```", section("Your own videos"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", python],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    guesses = [line.split(": ") for line in done.stdout.splitlines()]
    assert len(guesses) == 3
    assert {name for name, _ in guesses} < set(names)


@pytest.fixture
def downloads(clone: Path) -> Path:
    """Videos of Kinetics and Something-Something-v2, with annotations in their formats."""
    for split, ids in (("train", range(8)), ("val", range(8, 12))):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for number in ids:
            rows.append(f"{'abseiling' if number % 2 else 'zumba'},video_{number:05d},3,13,{split}")
            write_video(clone / f"raw/k400/{split}/video_{number:05d}_000003_000013.mp4", 14, size=(64, 96))
        (clone / f"raw/{split}.csv").write_text("\n".join(rows) + "\n")
    labels = {"Opening something": "0", "Closing something": "1"}
    entries = {"train": range(8), "validation": range(8, 12), "test": range(12, 14)}
    for name, ids in entries.items():
        listed = [
            {"id": str(i), "template": list(labels)[i % 2].replace("something", "[something]")} for i in ids
        ]
        file = clone / f"raw/labels/something-something-v2-{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"id": e["id"]} for e in listed] if name == "test" else listed))
        for i in ids:
            write_video(clone / f"raw/ssv2/{i}.mp4", 14, size=(64, 96))
    (clone / "raw/labels/something-something-v2-labels.json").write_text(json.dumps(labels))
    return clone


@pytest.mark.slow
def test_downloads_and_several_machines(downloads: Path) -> None:
    """From downloads to the number; then with two launchers, as on two machines."""
    two = ["MODEL.NUM_CLASSES", "2"]
    for command in commands("Kinetics-400 and Something-Something-v2"):
        output = run(command, downloads, *(two if "run_net.py" in command else []))
        if "--check" in command:
            assert "hours" in output or "epoch" in output
    for name, videos in (("kinetics_iR3D50", 4), ("ssv2_iR3D50", 4)):
        results = json.loads((downloads / f"output/{name}/results.json").read_text())
        assert (results["num_videos"], results["num_failed"]) == (videos, 0)
    (command,) = commands("Many GPUs, several machines")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = command.replace("host1:29500", f"localhost:{port}").replace("data/k400_256", "data/k400")
    machines = [started(command, downloads, *two, "OUTPUT_DIR", "output/two") for _ in range(2)]
    outputs = [machine.communicate(timeout=400)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert any("2 process(es)" in output for output in outputs)
    assert json.loads((downloads / "output/two/results.json").read_text())["num_videos"] == 4
