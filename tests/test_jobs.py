"""The same work in one process, in several and on a Ray cluster; whoever is killed, nothing hangs and nothing
runs on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import small_jobs
from conftest import ROOT, load_script, start, write_video
from small_jobs import die, refuse, sleep, square, where

from video_iresnet.data.records import read_records
from video_iresnet.prep.jobs import run_jobs
from video_iresnet.runtime.errors import InputError


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_once_with_its_own_result(workers: int) -> None:
    pairs = list(run_jobs(square, range(30), workers=workers, description="squares"))
    assert sorted((item, result) for item, (result, _) in pairs) == [(n, n * n) for n in range(30)]
    assert (os.getpid() in {process for _, (_, process) in pairs}) == (workers == 0)


def test_nothing_to_do() -> None:
    assert list(run_jobs(square, [], workers=2, description="nothing")) == []


def test_an_error_of_the_work_ends_everything() -> None:
    with pytest.raises(InputError, match=r"^three is refused$"):
        list(run_jobs(refuse, range(1000), workers=1, description="refusing"))


def test_a_killed_worker_is_one_clear_line_after_all_results() -> None:
    """Also where the results before it are taken late."""
    jobs = run_jobs(die, range(6), workers=1, description="dying", name=lambda item: f"item {item}")
    results = [next(jobs)]
    wait_until(lambda: not multiprocessing.active_children())
    with pytest.raises(
        InputError, match=r"^a worker process was killed while at item 2, perhaps for lack of memory; [^\n]*$"
    ):
        results.extend(jobs)
    assert sorted(results) == [(0, 0), (1, 1)]


def test_closing_ends_what_is_under_way() -> None:
    before = time.monotonic()
    with closing(run_jobs(sleep, [0.0, 300.0, 300.0], workers=1, description="sleeping")) as jobs:
        assert next(jobs) == (0.0, 0.0)
    assert time.monotonic() - before < 60


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import os, pathlib, sys, time\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from video_iresnet.prep.jobs import run_jobs\n"
        "def work(i):\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'worker').write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n"
        "if __name__ == '__main__': list(run_jobs(work, [1], workers=1, description=''))\n"
    )
    process = start(str(tmp_path / "work.py"))
    wait_until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text() != "")
    worker = int((tmp_path / "worker").read_text())
    assert is_running(worker)
    process.kill()
    process.communicate()
    wait_until(lambda: not is_running(worker))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--workers is -1"):
        list(run_jobs(square, [1], workers=-1, description=""))


def test_a_cluster_that_is_not_there() -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"no Ray cluster can be reached there .*refused.*ray start"):
        list(run_jobs(square, [1], workers=1, ray_address="127.0.0.1:1", description=""))


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Two nodes of one CPU and a small object store each."""
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(small_jobs)  # which the nodes cannot import
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_cluster_shares_the_work(ray_address: str) -> None:
    pairs = list(run_jobs(where, range(20), workers=2, ray_address=ray_address, description="on Ray"))
    assert sorted((item, result) for item, (result, _) in pairs) == [(n, n * n) for n in range(20)]
    assert len({node for _, (_, node) in pairs}) == 2
    with pytest.raises(InputError, match=r"^three is refused$"):
        list(run_jobs(refuse, range(1000), workers=2, ray_address=ray_address, description="on Ray"))


@pytest.fixture(scope="module")
def connected(ray_address: str) -> Iterator[str]:
    """One connection for several scripts in this process: the nodes start processes for each, which import
    torch.
    """
    import ray

    init, shutdown = ray.init, ray.shutdown
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda **options: ray.is_initialized() or init(**options))
        patch.setattr(ray, "shutdown", lambda: None)
        yield ray_address
    shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder; its lock names the process that held it, and rows of its index come in any
    order.
    """
    others = (".lock", "packets.sqlite")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in others)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_scripts_do_the_same_on_ray(
    connected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcode, verify = (load_script(f"data_prep/{name}.py").main for name in ("transcode", "verify"))
    for number in range(4):
        write_video(tmp_path / f"in/{number}.mkv", 20 + number)
    (tmp_path / "in/train.csv").write_text("".join(f"{number}.mkv {number}\n" for number in range(5)))
    outputs = {}
    for name, where_to in (("ray", ["--ray", connected]), ("here", ["--workers", "0"])):
        arguments = [
            "--list",
            str(tmp_path / "in/train.csv"),
            "--out",
            str(tmp_path / name),
            "--short-side",
            "32",
            *where_to,
        ]
        assert transcode(arguments) == 0
        assert "4 done, 0 skipped (done before), 1 failed" in capsys.readouterr().out
        outputs[name] = contents(tmp_path / name)
        assert verify(["--list", str(tmp_path / name / "train.csv"), *where_to]) == 0
        assert "4 of 4 videos are good" in capsys.readouterr().out
        assert [
            record.label
            for record in read_records(str(tmp_path / name / "train_clean.csv"), root="", num_classes=9)
        ] == [0, 1, 2, 3]
    assert outputs["ray"] == outputs["here"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_lists_and_frames_are_the_same_from_ray(connected: str, tmp_path: Path) -> None:
    """folders.py, kinetics.py and ssv2.py --frames look for videos, and extract frames, on the cluster as
    here.
    """
    for number in range(6):
        write_video(tmp_path / f"raw/class {number % 2}/{number}_000000_000010.mp4", 12 + number)
        write_video(tmp_path / f"ssv2/{number}.webm", 12 + number, codec="libvpx-vp9")
    rows = "".join(f"class {n % 2},{n},0,10,val\n" for n in range(7))
    (tmp_path / "val.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{rows}")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/labels.json").write_text('{"Opening something": "0"}')
    for split in ("train", "validation", "test"):
        entries = ", ".join(
            f'{{"id": "{n}", "template": "Opening [something]"}}' for n in range(2) if split == "train"
        )
        (tmp_path / f"json/{split}.json").write_text(f"[{entries}]")
    commands = {
        "folders": ["data_prep/folders.py", "--videos", str(tmp_path / "raw")],
        "kinetics": [
            "data_prep/kinetics.py",
            "--videos",
            str(tmp_path / "raw"),
            "--annotations",
            str(tmp_path / "val.csv"),
            "--split",
            "val",
        ],
        "ssv2": [
            "data_prep/ssv2.py",
            "--videos",
            str(tmp_path / "ssv2"),
            "--annotations",
            str(tmp_path / "json"),
            "--frames",
        ],
    }
    for name, command in commands.items():
        outputs = []
        for place, where_to in (("ray", ["--ray", connected]), ("here", ["--workers", "0"])):
            out = tmp_path / place / name
            assert load_script(command[0]).main([*command[1:], "--out", str(out), *where_to]) == 0
            outputs.append(contents(out))
        assert outputs[0] == outputs[1]
        assert len(outputs[0]) > (12 if name == "ssv2" else 2)
