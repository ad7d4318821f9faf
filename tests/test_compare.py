"""What tools/compare.py says of runs, against SciPy and by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, WITH_CHECKS, RunNet, load_script
from scipy import stats

from video_iresnet.changes import ANOTHER_RUN, TESTED, decides
from video_iresnet.config import load_config
from video_iresnet.report.compare import (
    Answer,
    Pair,
    compare,
    differences,
    in_words,
    mcnemar,
    read_answers,
    read_origin,
)
from video_iresnet.runtime.errors import InputError


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (9, 22), (22, 9), (0, 30), (700, 801)])
def test_the_p_value_is_that_of_a_binomial_test(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12)


def test_p_values_by_hand() -> None:
    assert mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(1, 6) == 2 * (1 + 7) / 2**7
    assert mcnemar(4, 4) == 1.0
    assert mcnemar(0, 3000) == 0.0  # 2 ** -2999


def test_with_many_videos_the_chi_square_test_agrees() -> None:
    """With McNemar's statistic and the correction for continuity."""
    for first, second in [(100, 130), (400, 350), (1000, 1100)]:
        chi_square = (abs(first - second) - 1) ** 2 / (first + second)
        assert mcnemar(first, second) == pytest.approx(stats.chi2.sf(chi_square, 1), rel=0.02)


def answers(right: str, names: str = "", label: int = 1) -> list[Answer]:
    """`right`: a 1 for each video that is right."""
    names = names or "abcdefghijklmnopqrstuvwxyz"[: len(right)]
    return [Answer(f"{name}.mp4", label, r == "1") for name, r in zip(names, right, strict=True)]


def test_videos_of_both_runs_are_compared() -> None:
    pair = compare(answers("1100101"), answers("01010011", "bcdefxyz"))
    # Of b to f, the first is right on b and e, the second on c and e.
    assert pair[:4] == (1, 1, 1, 2)
    assert pair.missing_in_first == ["x.mp4", "y.mp4", "z.mp4"]
    assert pair.missing_in_second == ["a.mp4", "g.mp4"]


def test_counts_against_a_table() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((2, 26)) < 0.6
    order = rng.permutation(26)
    text = ["".join(str(int(r)) for r in right) for right in (ours, theirs[order])]
    names = "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in order)
    pair = compare(answers(text[0]), answers(text[1], names))
    assert pair[:4] == tuple(sum((ours == a) & (theirs == b)) for a in (True, False) for b in (True, False))
    assert pair.p_value == pytest.approx(
        stats.binomtest(pair.only_first, pair.only_first + pair.only_second, 0.5).pvalue
    )


def test_videos_that_moved_are_found() -> None:
    """In another folder and transcoded; only where no name is equal."""
    moved = [a._replace(video=f"data/256/{a.video}") for a in answers("1101")]
    original = [a._replace(video=a.video.replace("mp4", "avi")) for a in answers("1011")]
    assert compare(moved, original)[:4] == (2, 1, 1, 0)
    first, *_ = moved
    assert compare([first, *answers("11")], moved).missing_in_second == ["a.mp4", "b.mp4"]


def test_a_name_that_is_listed_twice_is_two_videos() -> None:
    pair = compare(answers("10", "aa"), answers("011", "aaa"))
    assert pair[:4] == (0, 1, 1, 0)
    assert pair.missing_in_first == ["a.mp4"]


def test_runs_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="they have no video in common"):
        compare(answers("11"), answers("11", "xy"))
    with pytest.raises(InputError, match=r"a.mp4 is of class 1 in the first and of class 2 in the second"):
        compare(answers("11"), answers("11", label=2))


def pair_of(first: int, second: int) -> Pair:
    return Pair(200, first, second, 297 - 200 - first - second, mcnemar(first, second), [], [])


def test_in_words() -> None:
    assert in_words(pair_of(22, 9), "A", "B") == (
        "A and B differ on 31 of 297 videos, 22 to 9: p 0.029. If both were equally accurate, a split at "
        "least this uneven would come about in 3 of 100 tests"
    )
    assert in_words(pair_of(5, 4), "A", "B").endswith(
        "4: p 1. If both were equally accurate, a split at least this uneven would come about in 100 of 100 "
        "tests, so this one does not tell them apart"
    )
    assert in_words(pair_of(0, 10), "A", "B").endswith("p 0.002. If both were equally accurate, a split at "
        "least this uneven would come about in 2 of 1000 tests")  # fmt: skip
    assert in_words(pair_of(0, 30), "A", "B").endswith("in fewer than 1 of 1000 tests")
    assert in_words(pair_of(0, 0), "A", "B") == "A and B are right on the same of 297 videos"


def test_differences() -> None:
    runs = [{"a": 1, "b": [1, 2], "c": 3}, {"a": 1, "b": [1, 3]}, {"a": 1, "b": [1, 2]}]
    assert differences(runs) == {"b": [[1, 2], [1, 3], [1, 2]], "c": [3, None, None]}
    assert differences(runs[:1]) == {}


def test_what_a_key_decides() -> None:
    assert decides("SOLVER.BASE_LR") == "training"
    assert decides("TEST.NUM_ENSEMBLE_VIEWS") == "test"
    assert decides("MODEL.ARCH") == "training and test"
    assert decides("LOG_PERIOD") == ""
    assert all(decides(key).startswith("training") for key in ANOTHER_RUN)
    assert all(decides(key).endswith("test") for key in TESTED)


def test_an_origin_tells_of_changes_within_a_run(tmp_path: Path) -> None:
    stamps = [{"torch": "2.13", "config": 1}, {"torch": "2.14", "cores": 2}, {"torch": "2.14", "cores": 2}]
    (tmp_path / "stamp.json").write_text(json.dumps(stamps))
    assert read_origin(tmp_path, {"epoch": 3, "stamp": {"weights": "ab", "torch": "2.14"}}) == {
        "torch": "2.13, then 2.14", "cores": "2", "tested weights": "ab", "tested epoch": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(small: list[str], tmp_path_factory: pytest.TempPathFactory, run_net: RunNet) -> Path:
    """Three runs: two that were tested, one of them on other videos too, and one that was only trained."""
    folder = tmp_path_factory.mktemp("runs")
    short = [*WITH_CHECKS, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "OUTPUT_DIR"]
    assert run_net(*small, *short, str(folder / "a")) == 0
    data = Path(load_config(DEMO, small).DATA.PATH_TO_DATA_DIR)
    rows = (data / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("".join(f"{row}\n" for row in [*rows[1:], f"gone.mp4 {1}"]))
    other = ["DATA.TEST_LIST", str(folder / "test.csv"), "MODEL.ARCH", "resnet"]
    assert run_net(*small, *other, *short, str(folder / "b")) == 0
    assert run_net(*small, "TEST.ENABLE", "False", *short, str(folder / "c")) == 0
    return folder


def test_the_tool_on_real_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    folders = [str(runs / name) for name in "abc"]
    assert load_script("tools/compare.py").main([*folders, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["config"]["MODEL.ARCH"] == {"a": "iresnet", "b": "resnet", "c": "iresnet"}
    assert set(written["config"]) == {"MODEL.ARCH", "DATA.TEST_LIST", "TEST.ENABLE"}
    assert set(written["origin"]) == {"initial_weights", "tested weights", "tested test_list", "tested epoch"}
    assert re.search(r"^MODEL.ARCH +training and test +iresnet +resnet +iresnet$", printed, re.MULTILINE)
    results = json.loads((runs / "a/results.json").read_text())
    low, high = results["top1_acc_interval"]
    assert f"a   {results['top1_acc']:.2f} [{low:.2f}, {high:.2f}]" in printed
    assert written["runs"]["a"]["temporal_checks"] == results["temporal_checks"]
    assert "c holds no results of a test" in printed
    (pair,) = written["pairs"]
    ours, theirs = (
        {answer.video: answer.is_right for answer in read_answers(runs / name / "predictions.csv")}
        for name in "ab"
    )
    assert len(ours) == len(theirs) == 11
    assert sum(ours.values()) == round(11 * results["top1_acc"] / 100)
    common = ours.keys() & theirs.keys()
    assert pair["only_first"] == sum(ours[name] > theirs[name] for name in common)
    assert pair["only_second"] == sum(ours[name] < theirs[name] for name in common)
    assert pair["both"] + pair["neither"] + pair["only_first"] + pair["only_second"] == 10
    (gone,) = pair["missing_in_first"]
    assert gone == "gone.mp4"
    assert not theirs[gone]
    assert f"left out, as only b has it: 1 video(s), {gone}\n" in printed
    assert pair["missing_in_second"] == list(ours)[:1]
    assert f"{pair['meaning']}.\n" in printed


def test_equal_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script("tools/compare.py").main([str(runs / "a")] * 3) == 0
    printed = capsys.readouterr().out
    assert "the configs are equal" in printed
    assert "code, libraries, machine, lists and weights are equal" in printed
    assert printed.count("are right on the same of 11 videos.") == 3
    assert "Of 3 pairs of equally accurate runs, one in 20 has a p below 0.05 by chance." in printed


BAD = {
    "EMPTY": "EMPTY holds no config.yaml; name the OUTPUT_DIR of a run",
    "CONFIG": "CONFIG/config.yaml is no config of a run of this project; name the OUTPUT_DIR of a run",
    "RESULTS": r"RESULTS/results.json is no results.json of a test \('?num_videos'?\); run the test again",
    "CSV": r"CSV/predictions.csv is no predictions.csv of a test \(line 2: .*\); run the test again",
    "NO_CSV": r"cannot read NO_CSV/predictions.csv: No such file or directory",
    "": "a is one run; name two or more",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(
    case: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", *filter(None, BAD)):
        Path(name).mkdir()
        for file in ("config.yaml", "results.json", "predictions.csv"):
            (Path(name) / file).write_bytes((runs / "a" / file).read_bytes())
    Path("EMPTY/config.yaml").unlink()
    Path("CONFIG/config.yaml").write_text("NUM_GPUS: 8\n")
    Path("RESULTS/results.json").write_text("{}")
    Path("CSV/predictions.csv").write_text("video,label\na.mp4,1\n")
    Path("NO_CSV/predictions.csv").unlink()
    assert load_script("tools/compare.py").main(["a", *filter(None, [case])]) == 1
    assert re.fullmatch(f"error: {BAD[case]}\n", capsys.readouterr().err)
