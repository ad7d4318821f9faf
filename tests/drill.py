"""Kill and signal small runs at random moments and go on with the same command, until they end as the
undisturbed run did: python tests/drill.py --kills 40 --out FOLDER.

Some of the runs read their videos from shards in an S3 server on this machine, which is killed too, and some
are restarted by torchrun.

The final results.json, predictions.csv and weights must equal the undisturbed run's bit for bit; no file may
be left half-written and no process left behind; an orderly stop says no error and shows no traceback. Prints
a table with one line a kind of fault; the exit status is 0 where nothing is wrong. What every start printed
stays under --out. Reads /proc, so it needs Linux; with two free cores 40 faults take about 25 minutes.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import yaml
from conftest import DEMO, ROOT, load_script, small_overrides
from tabulate import tabulate

from video_iresnet.engine.checkpoint import list_checkpoints, load_checkpoint
from video_iresnet.prep.shards import Layout, pack_lists

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# 24 steps with a checkpoint after every 6, so that training takes about as long as the start does.
OVERRIDES = """DATA_LOADER.NUM_WORKERS 2 TRAIN.BATCH_SIZE 4 SOLVER.MAX_EPOCH 4 TRAIN.EVAL_PERIOD 2
    MODEL.DROPOUT_RATE 0.5"""
STRIKES = 5  # in one run's life; then it may end
PATIENCE = 30.0  # seconds in which a process may notice that its run is over
TEST_SECONDS = 1.5  # in which a fault strikes a test that has begun
LONGEST = 240.0  # seconds that one start may take
DOWN_SECONDS = 3.0  # of the S3 server, at most, before it is started again
ORDERLY = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
OWN = {"seconds": 0, "checkpoint": ""}  # what each run's results.json has of its own
WRONG = ["differences", "leftovers", "disorderly", "stuck"]


class Setting(NamedTuple):
    """How a run is started: on how many processes, whether its videos are in an S3 server, and how often
    torchrun restarts it.
    """

    processes: int
    in_store: bool = False
    restarts: int = 0

    def __str__(self) -> str:
        words = [str(self.processes), *["S3"] * self.in_store, *["restarts"] * bool(self.restarts)]
        return ", ".join(words)


class Fault(NamedTuple):
    """A signal to the processes of one role, at any moment of the training, while a checkpoint is written
    ("saving"), while the trained network is tested ("testing"), or while its results are written ("results").
    """

    setting: Setting
    target: str
    number: signal.Signals
    moment: str = ""

    def __str__(self) -> str:
        moments = {"saving": ", while saving", "testing": ", while testing", "results": ", writing results"}
        return f"{self.number.name}, {self.target}{moments.get(self.moment, '')}"


KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
ONE, TWO = Setting(1), Setting(2)
RESTARTED = Setting(2, restarts=9)
STORED, TWO_STORED = Setting(1, in_store=True), Setting(2, in_store=True)
FAULTS = [
    *(Fault(ONE, "worker", number) for number in (KILL,)),
    *(Fault(ONE, "main process", number) for number in (KILL, TERM, INT, USR1)),
    *(Fault(ONE, "all", number) for number in (KILL, TERM, INT, USR1)),
    *(Fault(ONE, "all", number, "saving") for number in (KILL, TERM)),
    *(Fault(ONE, "all", number, "testing") for number in (KILL, TERM)),
    *(Fault(ONE, "all", number, "results") for number in (KILL, TERM)),
    *(Fault(TWO, target, KILL) for target in ("worker", "rank", "agent")),
    *(Fault(TWO, "agent", number) for number in (TERM, INT)),
    *(Fault(TWO, "all", number) for number in (KILL, TERM, INT, USR1)),
    *(Fault(TWO, "all", number, "saving") for number in (KILL, TERM)),
    *(Fault(TWO, target, KILL, "testing") for target in ("all", "rank")),
    *(Fault(RESTARTED, target, KILL) for target in ("rank", "worker")),
    Fault(RESTARTED, "rank", KILL, "testing"),
    *(Fault(STORED, target, KILL) for target in ("server", "all")),
    Fault(STORED, "server", KILL, "testing"),
    Fault(TWO_STORED, "server", KILL),
]


class Start:
    """One start of a run's command. Its processes are known by a word in their environment, which children
    inherit, whoever their parent is.
    """

    def __init__(
        self, command: list[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.output = output
        self.word = f"DRILL={os.getpid()}_{time.monotonic_ns()}"
        environment = {
            **os.environ, **(environment or {}), **dict([self.word.split("=")]), "PYTHONPATH": str(ROOT)
        }  # fmt: skip
        with open(output, "w") as file:
            self.root = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def processes(self) -> list[int]:
        return [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self.word in _environ(pid)
        ]

    def members(self, fault: Fault) -> list[int]:
        """The processes that a fault strikes; empty where there are none yet."""
        if fault.target in ("agent", "main process"):
            return [self.root.pid]
        everyone = self.processes()
        if fault.target == "all":
            return everyone
        ranks = [pid for pid in everyone if "RANK=" in _environ(pid) or fault.setting.processes == 1]
        forked = {pid: _parent(pid) for pid in ranks if _command(pid) == _command(_parent(pid))}
        workers = [pid for pid, parent in forked.items() if parent in ranks]
        return workers if fault.target == "worker" else [pid for pid in ranks if pid not in workers]

    def strike(self, fault: Fault, rng: random.Random) -> bool:
        """Send the signal; False where the run ended before anyone was there to receive it."""
        while self.root.poll() is None:
            members = self.members(fault)
            if members:
                for pid in members if fault.target == "all" else [rng.choice(members)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, fault.number)
                return True
            time.sleep(0.01)
        return False

    def is_at(self, moment: str) -> bool:
        """Whether the test has begun, where that is the moment."""
        return moment not in ("testing", "results") or ": testing " in self.output.read_text(errors="replace")

    def end(self) -> int | None:
        """The exit status; None where it had to be killed because it took too long."""
        try:
            return self.root.wait(LONGEST)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, KILL)
        self.root.wait()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def _environ(pid: int) -> str:
    return _read(pid, "environ").decode(errors="replace")


def _command(pid: int) -> bytes:
    return _read(pid, "cmdline")


def _parent(pid: int) -> int:
    return int(_read(pid, "stat").rpartition(b")")[2].split()[1] or 0)


class ObjectStore:
    """An S3 server whose bucket holds shards of the videos, also after it was killed and started again."""

    def __init__(self, out: Path) -> None:
        self.out = out
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        lists = [out / "shapes" / name for name in ("train.csv", "val.csv", "test.csv")]
        pack_lists(lists, out / "shards", Layout(), shard_bytes=2**18, workers=1)
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "*",
            "VIDEO_IRESNET_CACHE": str(out / "cache"),
            "VIDEO_IRESNET_CACHE_GB": "0",  # so that each read of a video asks the server
        }
        self.start()
        atexit.register(self.kill)

    def start(self) -> None:
        """Start the server with its objects; it has the port when it has all of them."""
        command = [sys.executable, str(ROOT / "tests/object_store.py"), str(self.out), str(self.port)]
        self.process = subprocess.Popen([*command, str(self.out / "shards")], stdout=subprocess.PIPE)
        assert self.process.stdout
        self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Drill:
    """Runs of one data set, and what was wrong with them, counted by fault."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out = out
        self.rng = random.Random(seed)
        self.counts: dict[Fault, Counter[str]] = {}
        self.seconds: dict[int, float] = {}  # until the first step of an undisturbed run
        self.server: ObjectStore | None = None
        self.lines = 0  # of statistics in an undisturbed run
        shapes = load_script("data_prep/moving_shapes.py")
        shapes.write_data_set(out / "shapes", {"train": 24, "val": 8, "test": 96}, seed=0)

    def start(self, setting: Setting, folder: Path) -> Start:
        launcher = [*TORCHRUN, "--max-restarts", str(setting.restarts)] if setting.processes == 2 else []
        run = ["tools/run_net.py", "--cfg", DEMO, *small_overrides(self.out / "shapes"), *OVERRIDES.split()]
        environment = {}
        if setting.in_store:
            self.server = self.server or ObjectStore(self.out)
            run += ["DATA.PATH_TO_DATA_DIR", "s3://bucket"]
            environment = self.server.environment
        folder.mkdir(exist_ok=True)
        output = folder / f"start_{len(list(folder.glob('start_*.txt'))):02d}.txt"
        command = [sys.executable, *launcher, *run, "OUTPUT_DIR", str(folder / "run")]
        return Start(command, output, environment)

    def strike(self, start: Start, fault: Fault) -> bool:
        if fault.target != "server" or self.server is None:
            return start.strike(fault, self.rng)
        self.server.kill()
        time.sleep(self.rng.uniform(0, DOWN_SECONDS))
        self.server.start()
        return True

    def undisturbed(self, processes: int) -> Path:
        """The run that the others are compared with, made where it is not there yet."""
        folder = self.out / f"undisturbed_{processes}"
        if processes not in self.seconds:
            begin = time.monotonic()
            start = self.start(Setting(processes), folder)
            while start.root.poll() is None and not logged(folder):
                time.sleep(0.05)
            self.seconds[processes] = time.monotonic() - begin
            if start.end() != 0:
                raise SystemExit(f"error: the undisturbed run failed; see {start.output}")
            self.lines = logged(folder)
        return folder / "run"

    def note(self, faults: list[Fault], what: str, why: str) -> None:
        print(f"    {what.upper()}: {why}", flush=True)
        for fault in faults:
            self.counts[fault][what] += 1

    def live(self, faults: list[Fault], folder: Path) -> list[Fault]:
        """Start a run until it ends by itself, with one of the faults, in turn, at each start; returns those
        that struck.
        """
        setting = faults[0].setting
        expected = self.undisturbed(setting.processes)
        struck: list[Fault] = []
        watchers = []
        refused = 0.0
        while True:
            fault = faults[len(struck)] if len(struck) < len(faults) else None
            start = self.start(setting, folder)
            hit = fault is not None and self.wait(start, fault, folder) and self.strike(start, fault)
            code = start.end()
            text = start.output.read_text(errors="replace")
            print(
                f"{start.output.relative_to(self.out)}: {fault if hit else 'no fault'}, exit {code}",
                flush=True,
            )
            if hit and fault:
                struck.append(fault)
                self.counts.setdefault(fault, Counter())["count"] += 1
                watchers.append(threading.Thread(target=self.watch, args=(start, fault)))
                watchers[-1].start()
                if problem := disorder(text, fault):
                    self.note([fault], "disorderly", f"{problem}; see {start.output}")
            if code == 0:
                break
            if not hit and "is in use by" in text and refused < PATIENCE:  # those before are still ending
                refused += 1
                time.sleep(1)
            elif code is None or not hit:
                self.note(struck, "stuck", f"it does not go on (exit {code}); see {start.output}")
                break
        for watcher in watchers:
            watcher.join()
        for problem in differences(folder / "run", expected) if code == 0 else []:
            self.note(struck, "differences", problem)
        for problem in leftovers(folder / "run"):
            self.note(struck, "leftovers", problem)
        return struck

    def wait(self, start: Start, fault: Fault, folder: Path) -> bool:
        """Until the moment to strike, a quarter of the time before the first step, else after any line of
        statistics, or after all but the last, which is the test's; False where the run ended before.
        """
        early = self.rng.random() < 0.25 and fault.moment not in ("testing", "results")
        lines = 0 if early else self.rng.randint(1, max(1, self.lines - 2 - logged(folder))) + logged(folder)
        delay = self.rng.uniform(0, self.seconds[fault.setting.processes] if early else 0.5)
        if fault.moment in ("testing", "results"):
            lines = self.lines - 1
            delay = self.rng.uniform(0, TEST_SECONDS) if fault.moment == "testing" else 0
        written = {"saving": "checkpoints/.*.partial", "results": ".*.partial"}.get(fault.moment)
        while (logged(folder) < lines or not start.is_at(fault.moment)) and start.root.poll() is None:
            time.sleep(0.01)
        deadline = time.monotonic() + delay
        while start.root.poll() is None:
            if time.monotonic() > deadline and (not written or any((folder / "run").glob(written))):
                return True
            time.sleep(0.0005 if written else 0.01)
        return False

    def watch(self, start: Start, fault: Fault) -> None:
        """Count processes that outlive their run."""
        deadline = time.monotonic() + PATIENCE
        while pids := start.processes():
            if time.monotonic() > deadline:
                commands = {_command(pid).replace(b"\0", b" ").decode()[:60] for pid in pids}
                self.note([fault], "leftovers", f"{len(pids)} processes live on ({', '.join(commands)})")
                start.kill()
                return
            time.sleep(0.2)


def logged(folder: Path) -> int:
    """How many lines of statistics a run has written."""
    log = folder / "run/json_stats.log"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def disorder(text: str, fault: Fault) -> str:
    """What is wrong with the output of a start that was struck. Tracebacks of `python -m`, or that end in an
    exception of torchrun, are torchrun's own and not ours.
    """
    _, *tracebacks = text.split("Traceback (most recent call last):\n")
    own = re.compile(
        r'\s*File "<frozen runpy>"|[\s\S]*^torch\.distributed\.elastic\.\S+(Exception|Error):', re.M
    )
    ours = [traceback for traceback in tracebacks if not own.match(traceback)]
    if ours:
        return f"{len(ours)} traceback(s)"
    error = re.search(r"^error: .*", text, re.MULTILINE)
    return error[0] if error and fault.number in ORDERLY else ""


def differences(folder: Path, expected: Path) -> list[str]:
    """How the results of a run differ from those of another."""
    found = []
    if (folder / "predictions.csv").read_bytes() != (expected / "predictions.csv").read_bytes():
        found.append(f"{folder}/predictions.csv differs")
    ours, theirs = (json.loads((run / "results.json").read_text()) for run in (folder, expected))
    if ours | OWN != theirs | OWN:
        found.append(f"{folder}/results.json differs")
    for pick in (
        lambda run: list_checkpoints(run / "checkpoints")[-1],
        lambda run: run / "checkpoints/checkpoint_best.pyth",
    ):
        ours, theirs = (load_checkpoint(pick(run)) for run in (folder, expected))
        weights, others = ours["model_state"], theirs["model_state"]
        if weights.keys() != others.keys() or not all(
            torch.equal(weights[key], others[key]) for key in weights
        ):
            found.append(f"{pick(folder)}: other weights")
        if ours["position"] != theirs["position"]:
            found.append(f"{pick(folder)}: other validations")
    return found


def leftovers(folder: Path) -> list[str]:
    """Files of a finished run that are temporary or half-written."""
    found = [f"{path} is left" for end in ("partial", "sqlite-journal") for path in folder.rglob(f"*{end}")]
    for path in [
        folder / "config.yaml",
        folder / "results.json",
        folder / "json_stats.log",
        *folder.rglob("*.pyth"),
    ]:
        try:
            if path.suffix == ".pyth":
                load_checkpoint(path)
            elif path.suffix == ".log":
                for line in path.read_text().splitlines():
                    json.loads(line.removeprefix("json_stats: "))
            else:
                yaml.safe_load(path.read_text())
        except (ValueError, OSError, yaml.YAMLError) as error:
            found.append(f"{path} is not whole: {error}")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, help="how many faults, of all kinds in turn")
    parser.add_argument(
        "--moment", choices=["saving", "testing", "results"], help="faults of this kind alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="an empty or a new folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty")
    drill = Drill(options.out.resolve(), options.seed)
    kinds = [fault for fault in FAULTS if options.moment in (None, fault.moment)]
    planned = [
        fault for _ in range(0, options.kills, len(kinds)) for fault in drill.rng.sample(kinds, len(kinds))
    ]
    planned = planned[: options.kills]
    lives = 0
    while planned:
        lives += 1
        faults = [fault for fault in planned if fault.setting == planned[0].setting][:STRIKES]
        for fault in drill.live(faults, drill.out / f"life_{lives:02d}"):
            planned.remove(fault)
    rows = [
        [str(fault), str(fault.setting), *(count[name] for name in ("count", *WRONG))]
        for fault, count in sorted(drill.counts.items(), key=lambda item: FAULTS.index(item[0]))
    ]
    total = ["all", "", *(sum(count[name] for count in drill.counts.values()) for name in ("count", *WRONG))]
    print(tabulate([*rows, total], headers=["fault", "processes", "count", *WRONG], tablefmt="github"))
    return int(any(total[3:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
