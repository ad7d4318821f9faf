"""Lists: formats of the field, and errors that name the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import (
    TASK,
    ClassNames,
    Record,
    file_sizes,
    missing_videos,
    read_class_names,
    read_frame_list,
    read_json_classes,
    read_json_labels,
    read_records,
    read_tsm_list,
)
from video_iresnet.runtime.errors import InputError


def read(tmp_path: Path, text: str, **options: object) -> list[tuple[str, int]]:
    (tmp_path / "list.txt").write_bytes(text.encode())
    return [
        (record.name, record.label)
        for record in read_records(str(tmp_path / "list.txt"), root="/videos", num_classes=8, **options)
    ]


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
    assert read_class_names(str(tmp_path / "names.txt")) == ClassNames(
        ("riding a bike", "air drumming"), (0, 1)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.txt is empty; expected `path label`"),
        ("a.mp4 1\nb.mp4\n", "line 2 of .*list.txt is 'b.mp4'; expected `path label`"),
        ("a.mp4 1\n\nb.mp4 x\n", "line 3 of .*list.txt is 'b.mp4 x'"),
        (
            "a.mp4 1\nb.mp4 8\n",
            r"label 8 of line 2 of .*list.txt is outside \[0, 8\); correct the list, or MODEL.NUM_CLASSES "
            r"\(8\)",
        ),
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


@pytest.mark.parametrize("number", [0, TASK, 3 * TASK + 1])
def test_threads_keep_the_order_of_the_files(number: int, tmp_path: Path) -> None:
    records = [Record(f"{i}", str(tmp_path / f"{i}.mp4"), 0) for i in range(number)]
    expected = [i if i % 3 else -1 for i in range(number)]
    for record, size in zip(records, expected, strict=True):
        if size >= 0:
            Path(record.path).write_bytes(b"x" * size)
    assert file_sizes(records) == file_sizes(PackedRecords(records)) == expected
    assert [int(record.name) for record in missing_videos(records)] == list(range(0, number, 3))


HEADER = "original_vido_id video_id frame_id path labels\n"


def frame_list(tmp_path: Path, rows: str, labels: dict[str, int | None], root: str = "/x") -> list[Record]:
    (tmp_path / "train.csv").write_bytes(rows.encode())
    return read_frame_list(str(tmp_path / "train.csv"), root=root, labels=labels)


def test_frame_lists_of_pyslowfast(tmp_path: Path) -> None:
    rows = '74 0 0 74/74_000009.jpg ""\r\n74 0 1 74/74_000010.jpg ""\r\n8 1 0 8 %a/8-1.png ""\r\n'
    records = frame_list(tmp_path, "\ufeff" + HEADER + rows, {"8": 0, "74": 3}, root="/100%")
    assert records == [
        Record("74", "/100%%/74/74_%06d.jpg", 3, 9, 2),
        Record("8", "/100%%/8 %%a/8-%01d.png", 0, 1, 1),
    ]
    assert [records[0].path % n for n in (9, 10)] == ["/100%/74/74_000009.jpg", "/100%/74/74_000010.jpg"]
    assert records[1].path % 1 == "/100%/8 %a/8-1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 of .*train.csv is ''; expected the header"),
        ("a.mp4 1\n", "line 1 of .*train.csv is 'a.mp4 1'; expected the header `original_vido_id"),
        (HEADER, "train.csv lists no frame"),
        (
            HEADER + "7 0 0 7/7_1.jpg\n",
            "line 2 of .*train.csv is '7 0 0 7/7_1.jpg'; expected `id video frame path labels`",
        ),
        (
            HEADER + '7 0 0 7/7_01.jpg ""\n7 0 1 7/7_03.jpg ""\n',
            "frame 7/7_03.jpg of line 3 of .*train.csv should be 7/7_02.jpg",
        ),
        (
            HEADER + '7 0 0 7/a_01.jpg ""\n7 0 1 7/b_02.jpg ""\n',
            "frame 7/b_02.jpg of line 3 of .* should be 7/a_02.jpg",
        ),
        (HEADER + '7 0 0 7/first.jpg ""\n', "frame 7/first.jpg of line 2 of .* has no number"),
        (
            HEADER + '7 0 0 7/1.jpg ""\n8 0 0 8/1.jpg ""\n7 0 1 7/2.jpg ""\n',
            "video 7 of line 4 of .* was listed further up",
        ),
        (HEADER + '9 0 0 9/1.jpg ""\n', "video 9 of line 2 of .* has no label"),
        (HEADER + '1 0 0 1/1.jpg ""\n', "video 1 of line 2 of .* has no label"),
    ],
)
def test_mistakes_in_frame_lists(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        frame_list(tmp_path, text, {"7": 0, "8": 1, "1": None})


def test_absent_frame_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*gone.csv: No such file"):
        read_frame_list(str(tmp_path / "gone.csv"), root="", labels={})


def test_tsm_lists(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a b/12 156 140\r\n1% 3 0\r\n")
    first, second = read_tsm_list(str(tmp_path / "list.txt"), root="/x", num_classes=174)
    assert first == Record("a b/12", "/x/a b/12/img_%05d.jpg", 140, 1, 156)
    assert second.path % 3 == "/x/1%/img_00003.jpg"
    named = read_tsm_list(str(tmp_path / "list.txt"), root="/x", num_classes=174, pattern="{folder}_%06d.jpg")
    assert [record.path % 1 for record in named] == ["/x/a b/12/12_000001.jpg", "/x/1%/1%_000001.jpg"]
    with pytest.raises(InputError, match=r"pattern of frame names is 'img.jpg'; expected one number"):
        read_tsm_list(str(tmp_path / "list.txt"), root="/x", num_classes=174, pattern="img.jpg")


@pytest.mark.parametrize("start", [0, 1])
def test_tsm_lists_start_at_0_or_1(tmp_path: Path, start: int) -> None:
    """The first folder tells: its files are 0, 1, 2 or 1, 2, 3."""
    (tmp_path / "a").mkdir()
    for number in range(start, start + 3):
        (tmp_path / f"a/img_{number:05d}.jpg").touch()
    (tmp_path / "list.txt").write_text("a 3 1\nb 2 0\n")
    records = read_tsm_list(str(tmp_path / "list.txt"), root=str(tmp_path), num_classes=2)
    assert [(record.first_frame, record.num_frames) for record in records] == [(start, 3), (start, 2)]


def test_a_folder_that_may_start_at_0_or_1(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(4):
        (tmp_path / f"a/img_{number:05d}.jpg").touch()
    (tmp_path / "list.txt").write_text("a 3 1\n")
    with pytest.raises(
        InputError,
        match=r"a has 3 frames by its list, but .*00000.jpg and .*00003.jpg are both there; correct",
    ):
        read_tsm_list(str(tmp_path / "list.txt"), root=str(tmp_path), num_classes=2)
    (tmp_path / "list.txt").write_text("a 4 1\n")
    (record,) = read_tsm_list(str(tmp_path / "list.txt"), root=str(tmp_path), num_classes=2)
    assert record.first_frame == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.txt is empty; expected `folder frames label`"),
        ("a 3 1\nb 1\n", "line 2 of .*list.txt is 'b 1'"),
        ("a 0 1\n", "line 1 of .*list.txt is 'a 0 1'"),
        ("a 3 8\n", r"label 8 of line 1 of .*list.txt is outside \[0, 8\)"),
    ],
)
def test_mistakes_in_tsm_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_tsm_list(str(tmp_path / "list.txt"), root="", num_classes=8)


def test_missing_frames(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/img_00001.jpg").touch()
    (tmp_path / "list.txt").write_text("a 2 0\nb 2 0\n")
    records = read_tsm_list(str(tmp_path / "list.txt"), root=str(tmp_path), num_classes=1)
    assert [record.name for record in missing_videos(records)] == ["b"]


def test_annotations_in_json(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"Opening something": "1", "Closing something": "0"}')
    (tmp_path / "train.json").write_text(
        '[{"id": "7", "label": "opening a tin", "template": "Opening [something]", '
        '"placeholders": ["a tin"]}, {"id": 8}]'
    )
    names = read_json_classes(str(tmp_path / "labels.json"))
    assert names == ["Closing something", "Opening something"]
    assert read_json_labels(str(tmp_path / "train.json"), names) == {"7": 1, "8": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "split.json is not JSON"),
        ('{"id": 7}', "split.json does not hold a split; expected a list"),
        ('[{"template": "Opening [something]"}]', "split.json does not hold a split; expected a list"),
        (
            '[{"id": "7", "template": "Opeing [something]"}]',
            "label 'Opeing something' of video 7 .* not among the 1 classes; did you mean 'Opening "
            "something'",
        ),
        ('[{"id": "7"}, {"id": "7"}]', "video 7 comes twice in .*split.json"),
    ],
)
def test_mistakes_in_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        read_json_labels(str(tmp_path / "split.json"), ["Opening something"])


@pytest.mark.parametrize(
    "text", ['["a"]', '{"a": "x"}', '{"a": null}', '{"a": "1"}', '{"a": "0", "b": "0"}', "{}"]
)
def test_classes_in_json_are_numbered_from_0(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=r"labels.json .*; expected"):
        read_json_classes(str(tmp_path / "labels.json"))
