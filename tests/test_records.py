"""Lists: formats of the field, and errors that name the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from video_iresnet.data.records import ClassNames, missing_videos, read_class_names, read_records
from video_iresnet.runtime.errors import InputError


def read(tmp_path: Path, text: str, **options: object) -> list[tuple[str, int]]:
    (tmp_path / "list.txt").write_bytes(text.encode())
    return [(record.name, record.label) for record in read_records(str(tmp_path / "list.txt"), root="/videos", num_classes=8, **options)]


@pytest.mark.parametrize(
    "text",
    [
        "a b.mp4 3\nc,d.mp4 0\n",
        "a b.mp4,3\nc,d.mp4,0",
        "a b.mp4\t3\r\n\r\nc,d.mp4\t0\r\n",
        "\ufeffa b.mp4; 3\nc,d.mp4 ;0\n",
        '"a b.mp4",3\n"c,d.mp4",0\n',
    ],
)
def test_separators_are_found_and_labels_taken_from_the_right(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [("a b.mp4", 3), ("c,d.mp4", 0)]


def test_separator_can_be_set(tmp_path: Path) -> None:
    assert read(tmp_path, "a 1,2\n", separator=",") == [("a 1", 2)]
    with pytest.raises(InputError, match=r"PATH_LABEL_SEPARATOR is '\|'; expected"):
        read(tmp_path, "a|2", separator="|")


def test_paths_start_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x/a.mp4 1\n/abs/b.mp4 2\n")
    records = read_records(str(tmp_path / "list.txt"), root="/videos", num_classes=3)
    assert [record.path for record in records] == ["/videos/x/a.mp4", "/abs/b.mp4"]


def test_ucf101_lists(tmp_path: Path) -> None:
    """Numbers from 1 by classInd.txt, and test lists without labels."""
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n3 Baby Crawling\n")
    classes = read_class_names(str(tmp_path / "classInd.txt"))
    assert classes == ClassNames(("ApplyEyeMakeup", "Archery", "Baby Crawling"), (1, 2, 3))
    assert read(tmp_path, "Archery/v_g01.avi 2\nApplyEyeMakeup/v.avi 1\n", class_names=classes) == [
        ("Archery/v_g01.avi", 1),
        ("ApplyEyeMakeup/v.avi", 0),
    ]
    assert read(tmp_path, "Baby Crawling/v.avi\n", class_names=classes) == [("Baby Crawling/v.avi", 2)]
    with pytest.raises(InputError, match=r"label 0 of line 1 of .* is outside \[1, 3\]"):
        read(tmp_path, "Archery/v.avi 0\n", class_names=classes)


def test_plain_class_names_number_from_0(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("riding a bike\n\nair drumming\n")
    assert read_class_names(str(tmp_path / "names.txt")) == ClassNames(("riding a bike", "air drumming"), (0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.txt is empty; expected `path label`"),
        ("a.mp4 1\nb.mp4\n", "line 2 of .*list.txt is 'b.mp4'; expected `path label`"),
        ("a.mp4 1\n\nb.mp4 x\n", "line 3 of .*list.txt is 'b.mp4 x'"),
        ("a.mp4 1\nb.mp4 8\n", r"label 8 of line 2 of .*list.txt is outside \[0, 8\); correct the list, or MODEL.NUM_CLASSES \(8\)"),
        ("a.mp4 -1\n", r"label -1 of line 1"),
        ("label,youtube_id,time_start\nabseiling,x,1\n", "line 1 of"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        read(tmp_path, text)


def test_absent_and_binary_lists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent.csv: No such file"):
        read_records(str(tmp_path / "absent.csv"), root="", num_classes=2)
    (tmp_path / "video.csv").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(InputError, match=r"cannot read .*video.csv"):
        read_records(str(tmp_path / "video.csv"), root="", num_classes=2)


def test_missing_videos(tmp_path: Path) -> None:
    (tmp_path / "there.mp4").touch()
    (tmp_path / "list.txt").write_text("gone.mp4 0\nthere.mp4 1\n")
    records = read_records(str(tmp_path / "list.txt"), root=str(tmp_path), num_classes=2)
    assert [record.name for record in missing_videos(records)] == ["gone.mp4"]
