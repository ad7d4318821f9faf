"""Every command in the documents is one that works here: its files exist, its own parser takes its options,
its config and keys are right, its targets are there.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, load_script
from torch.distributed.run import get_args_parser as torchrun_parser

from video_iresnet.config import default_config, load_config

DOCUMENTS = ["README.md", "MODEL_ZOO.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [path for folder in ("tools", "data_prep") for path in sorted((ROOT / folder).glob("*.py"))]


def commands() -> list[str]:
    """The lines of fenced `sh` blocks, the command lines that head the configs, and those of scripts'
    docstrings.
    """
    found = []
    for name in DOCUMENTS:
        found += re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        found.append(path.read_text().splitlines()[0].removeprefix("# "))
    for path in SCRIPTS:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found += re.findall(r"^    (python (?:\\\n|.)+)", text, re.MULTILINE)
    lines = [line for text in found for line in text.replace("\\\n", " ").splitlines()]
    return sorted({line.split("  #")[0].strip() for line in lines if line.strip()})


class ParsedError(Exception):
    """Raised where a script would begin its work, with what its parser made of the arguments."""


def parse(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script's own parser makes of its arguments; it exits where they are wrong."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *given: list[str]) -> None:
        raise ParsedError(original(parser, *given))

    main = load_script(script).main
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr("sys.argv", [script, *arguments])
    with pytest.raises(ParsedError) as parsed:
        main(*[arguments] * len(inspect.signature(main).parameters))
    monkeypatch.undo()
    options = parsed.value.args[0]
    assert isinstance(options, argparse.Namespace)
    return options


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where a command would not begin its work."""
    words = []
    for word in shlex.split(command):  # with wildcards of files that are here, as a shell
        found = sorted(ROOT.glob(word)) if word.startswith("configs/") else []
        words += [str(path.relative_to(ROOT)) for path in found] or [word]
    if words[0] == "srun":  # its own options are those of another program
        words = words[words.index("python") :]
    if words[0] == "torchrun":
        options = torchrun_parser().parse_args(words[1:])
        words = ["python", options.training_script, *options.training_script_args]
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "tensorboard":
        assert words[1:2] == ["--logdir"]
    elif words[1] == "tools/run_net.py":
        paths, overrides, _ = load_script(words[1]).parse(words[2:])
        for path in paths:
            load_config(str(ROOT / path), overrides)
    elif words[0] == "python":
        options = parse(words[1], words[2:], monkeypatch)
        if words[1] == "tools/slurm.py":  # which submits another command
            check(shlex.join(["python", f"tools/{options.name}.py", *options.arguments]), monkeypatch)
        configs = getattr(options, "cfg", [])
        for path in [configs] if isinstance(configs, str) else configs:
            load_config(str(ROOT / path), getattr(options, "overrides", []))
    else:
        assert words[0] in {"git", "cd"} or words == [".", ".venv/bin/activate"]


@pytest.mark.parametrize("command", commands())
def test_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "make demos",
        "tensorboard --logdirs output",
        "torchrun --nproc-per-nodes 2 tools/run_net.py --cfg configs/demo/iR3D18.yaml",
        "python tools/run_net.py --cfg configs/demo/iR3D18.yaml TRAIN.BATCH 4",
        "python tools/run_net.py --cfg configs/demo/gone.yaml",
        "srun --ntasks 2 python tools/run_net.py --cfg configs/demo/gone.yaml",
        "srun --ntasks 2 tools/run_net.py --cfg configs/demo/iR3D18.yaml",
        "python tools/run_net.py --config configs/demo/iR3D18.yaml",
        "python tools/slurm.py --gpu-number 2 run_net --cfg configs/demo/iR3D18.yaml",
        "python tools/slurm.py --nodes 2 run_net --cfg configs/demo/iR3D18.yaml TRAIN.BATCH 4",
        "python tools/show_clips.py --cfg configs/demo/iR3D18.yaml --out a.png TRAIN.BATCH 4",
        "python tools/complexity.py --cfg configs/demo/gone.yaml",
        "python tools/benchmark.py memory --record 10 --all",
        "python data_prep/moving_shapes.py --output data",
        "python data_prep/folders.py --videos a --out b --val-part 0.2",
        "python data_prep/gone.py --out data",
    ],
)
def test_wrong_commands_are_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError, OSError)):
        check(command, monkeypatch)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_name_keys_that_exist(name: str) -> None:
    """But for PySlowFast's own, of which they say so."""
    sections = "|".join(key for key, value in default_config().items() if hasattr(value, "items"))
    text = re.sub(r"^\|.*PySlowFast.*\n(\|.*\n)*", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    for section, key in re.findall(rf"\b({sections})\.([A-Z0-9_]+)", text):
        assert key in default_config()[section], f"{name}: {section}.{key}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_name_options_that_exist(name: str) -> None:
    source = "".join(path.read_text() for path in [*SCRIPTS, ROOT / "video_iresnet/prep/jobs.py"])
    outside = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for option in re.findall(r"`(--[a-z-]+)", outside):
        assert f'"{option}"' in source, f"{name}: {option}"


def test_documents_name_files_that_exist() -> None:
    for name in DOCUMENTS:
        for path in re.findall(
            r"`((?:video_iresnet|configs|data_prep|tools|tests)/[\w/.]+)`", (ROOT / name).read_text()
        ):
            assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_link_to_what_exists(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{name}: {target}"


def test_documents_do_not_name_this_machine() -> None:
    for path in [*map(Path, DOCUMENTS), Path("CHANGELOG.md")]:
        assert not re.search(r"/(?:work|root|home)/", (ROOT / path).read_text())
