"""Check the tests: make small changes to the code, each alone in a copy of the tree, and run the tests that
execute the changed line. A change that no test notices is printed: either it changes nothing, or a test is
missing.

    python tests/mutate.py --changes 100 --seed 0 [--modules video_iresnet/engine/step.py ...]

First, one run of the tests measures which of them execute which lines; --coverage FOLDER keeps that.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "data/sampling.py", "data/loader.py", "data/dataset.py", "data/decode/*.py", "engine/evaluate.py",
    "engine/views.py", "engine/aggregate.py", "engine/step.py", "engine/train.py", "engine/tasks.py",
    "engine/schedule.py", "engine/checkpoint.py", "models/weights.py",
)  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATIONS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Add,
}  # fmt: skip
SECONDS = 240.0  # of tests that may be run for one change, quickest first


class Change(NamedTuple):
    """Another text for a piece of a file, from (line, column) to (line, column)."""

    path: Path
    node: ast.expr | ast.stmt
    text: str

    def apply(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        first, last = self.node.lineno - 1, (self.node.end_lineno or 0) - 1
        # Columns count bytes of UTF-8.
        head = lines[first].encode()[: self.node.col_offset].decode()
        tail = lines[last].encode()[self.node.end_col_offset :].decode()
        return "".join([*lines[:first], head + self.text + tail, *lines[last + 1 :]])


def changed(node: ast.AST) -> Iterator[str]:
    """Other texts for a node."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=[right]):
            yield f"({ast.unparse(ast.Compare(left, [COMPARISONS[type(op)]()], [right]))})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            yield f"({ast.unparse(ast.BinOp(left, OPERATIONS[type(op)](), right))})"
        case ast.BoolOp(op=op, values=values):
            yield f"({ast.unparse(ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield f"({value + 1})"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"


def changes(path: Path) -> Iterator[Change]:
    """The changes of a file; those of annotations, texts, logs and errors' arguments are left out."""

    def visit(node: ast.AST) -> Iterator[Change]:
        if isinstance(node, ast.expr | ast.stmt):
            yield from (Change(path, node, text) for text in changed(node))
        silent = {"annotation", "returns", "decorator_list", "exc"}
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if (
                    name not in silent
                    and isinstance(child, ast.AST)
                    and not isinstance(child, ast.JoinedStr)
                    and not ast.unparse(child).startswith("log.")
                ):
                    yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def copy_tree(target: Path) -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_pytest(tree: Path, arguments: list[str], timeout: float | None = None) -> int:
    """The exit status of pytest on a copy of the tree. Raises subprocess.TimeoutExpired."""
    command = [sys.executable, *arguments, "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):  # and what its tests have started
                os.killpg(process.pid, signal.SIGKILL)


class Measured:
    """Which test functions execute a line, and the seconds they take."""

    def __init__(self, folder: Path, tree: Path) -> None:
        data, report = folder / "coverage", folder / "junit.xml"
        if not report.exists():
            settings = folder / "coveragerc"
            settings.write_text("[run]\ndynamic_context = test_function\nsource = video_iresnet\n")
            coverage = ["-m", "coverage", "run", f"--rcfile={settings}", f"--data-file={data}"]
            run_pytest(tree, [*coverage, "-m", "pytest", "-m", "not slow", "tests", f"--junitxml={report}"])
        self.data = CoverageData(str(data))
        self.data.read()
        self.files = {Path(name).as_posix().rpartition("video_iresnet/")[2]: name for name in
                      self.data.measured_files()}  # fmt: skip
        self.seconds: Counter[str] = Counter()
        failed = set()
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            module = case.get("classname", "").rpartition(".")[2]
            name = f"{module}.{case.get('name', '').partition('[')[0]}"
            self.seconds[name] += float(case.get("time", 0))
            if case.find("failure") is not None or case.find("error") is not None:
                failed.add(name)
        for name in failed:
            print(f"{name} fails without any change and is left out")
            del self.seconds[name]

    def tests(self, change: Change) -> list[str]:
        """The tests of a changed line, quickest first; of the file where none runs it while it is traced."""
        name = self.files.get(change.path.relative_to(ROOT / "video_iresnet").as_posix(), "")
        lines = self.data.contexts_by_lineno(name)
        found = {test for test in lines.get(change.node.lineno, []) if test}
        found = found or {test for tests in lines.values() for test in tests if test}
        names, total = [], 0.0
        for test in sorted(found & self.seconds.keys(), key=self.seconds.__getitem__):
            total += self.seconds[test]
            if total < SECONDS:
                names.append("tests/{}.py::{}".format(*test.split(".")))
        return names


def survives(change: Change, tree: Path, tests: list[str]) -> bool:
    """Whether all tests pass with the change. One that never ends is noticed too."""
    path = tree / change.path.relative_to(ROOT)
    before = path.read_text()
    path.write_text(change.apply(before))
    try:
        return run_pytest(tree, ["-m", "pytest", "-x", *tests], timeout=60 + 3 * SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(before)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=MODULES, help="below video_iresnet/")
    parser.add_argument("--coverage", type=Path, help="a folder for what the first run measures")
    options = parser.parse_args(arguments)
    paths = sorted({path for name in options.modules for path in (ROOT / "video_iresnet").glob(name)})
    possible = [change for path in paths for change in changes(path)]
    chosen = random.Random(options.seed).sample(possible, min(options.changes, len(possible)))
    caught: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        copy_tree(tree)
        folder = options.coverage or Path(temporary)
        folder.mkdir(exist_ok=True)
        measured = Measured(folder, tree)
        for change in chosen:
            tests = measured.tests(change)
            name = change.path.relative_to(ROOT)
            if survives(change, tree, tests):
                print(f"{name}:{change.node.lineno}: {ast.unparse(change.node)} -> {change.text} "
                      f"(passes {len(tests)} tests)", flush=True)  # fmt: skip
            else:
                caught[name.as_posix()] += 1
    totals = Counter(change.path.relative_to(ROOT).as_posix() for change in chosen)
    for name, total in sorted(totals.items()):
        print(f"{name}: {caught[name]} of {total} caught")
    print(f"{caught.total()} of {len(chosen)} changes are caught")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
