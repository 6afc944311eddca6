"""Rows come back as they were written, and damage is named."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from pruning.errors import RecordsError


def row(run: str = "run", level: int = 0, **more) -> dict:
    return {"format": 1, "run": run, "level": level, **more}


# Writing and reading


def test_rows_come_back_as_they_were_written(tmp_path):
    first = [row("a", 0, accuracy=0.97, config={"x": {"y": [1, 2]}}), row("a", 1, accuracy=0.91, emptied=["fc1"])]
    second = [row("b", 0, accuracy=0.5, unheard_of="kept")]
    records.write(tmp_path / "sweep" / "a", first)
    records.write(tmp_path / "b", second)

    frame = records.read(tmp_path)

    assert list(frame["run"]) == ["b", "a", "a"]  # the order of the paths
    assert frame["config"][1] == {"x": {"y": [1, 2]}}
    assert frame["emptied"][2] == ["fc1"]
    assert frame["unheard_of"][0] == "kept"
    assert frame["unheard_of"].isna().tolist() == [False, True, True]
    for written, (_, found) in zip([*second, *first], frame.iterrows(), strict=True):
        assert {key: found[key] for key in written} == written


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(extra=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_value_survives_in_one_line(extra, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    written = {**extra, **row("a", 3)}
    path = records.write(folder, [written])
    assert path.read_bytes().count(b"\n") == 1
    found = records.read(folder)
    assert set(found.columns) == set(written)
    assert records._rows(path) == [written]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    loss = {"loss": float("nan"), "nested": {"deep": [1.0, float("inf"), -float("inf")]}, "whole": 3}
    path = records.write(tmp_path, [row(**loss)])
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == row(loss=None, nested={"deep": [1.0, None, None]}, whole=3)
    assert records.read(tmp_path)["loss"].isna().all()


@pytest.mark.parametrize("broken", ["fsync", "replace", "row"])
def test_a_failed_write_leaves_the_old_rows_and_nothing_else(tmp_path, monkeypatch, broken):
    records.write(tmp_path, [row(accuracy=0.1)])
    before = (tmp_path / "rows.jsonl").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif broken == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    unwritable = {"value": object()} if broken == "row" else {}
    with pytest.raises((OSError, TypeError)):
        records.write(tmp_path, [row(), row(level=1, **unwritable)])

    assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").write_text("")
    assert records.write(tmp_path, [row()]).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"run": "a", "level": 0}],
        [row(level=-1)],
        [row(level=True)],
        [row(level=1.0)],
        [{**row(), "run": 3}],
        [row(level=1), row(level=1)],
        [[1, 2]],
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, rows):
    with pytest.raises(RecordsError):
        records.write(tmp_path, rows)
    assert os.listdir(tmp_path) == []


def test_a_file_cut_at_any_byte_is_refused_or_ends_with_a_whole_row(tmp_path):
    rows = [row(level=0, text="é"), row(level=1, config={"a": 1})]
    path = records.write(tmp_path, rows)
    whole = path.read_bytes()
    lengths = set()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            found = records._rows(path)
        except RecordsError:
            continue
        assert found == rows[: len(found)]
        lengths.add(end)
    first = whole.index(b"\n")
    assert lengths == {first, first + 1, len(whole) - 1}


good = json.dumps(row()).encode()


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", None, "empty"),
        (b"\n \n", None, "empty"),
        (good + b"\n" + good[:-4], 2, "cut or not JSON"),
        (b"__import__('os').abort()", 1, "not JSON"),
        (b"{'run': 'a'}", 1, "not JSON"),
        (b"\x80\x04\x95", 1, "not JSON"),
        (b"[" * 100_000, 1, "not JSON"),
        (good.replace(b"0}", b'0, "loss": NaN}'), 1, "NaN is not JSON"),
        (good.replace(b"0}", b'0, "loss": -Infinity}'), 1, "-Infinity is not JSON"),
        (b"[1, 2]", 1, "JSON object"),
        (b"null", 1, "JSON object"),
        (good.replace(b'"format": 1', b'"format": 2'), 1, "format 2"),
        (good.replace(b'"format": 1', b'"format": true'), 1, "format True"),
        (good.replace(b'"format": 1', b'"format": 1.0'), 1, "format 1.0"),
        (good.replace(b'"format": 1, ', b""), 1, "format None"),
        (good.replace(b'"run": "run", ', b""), 1, '"run"'),
        (good.replace(b'"level": 0', b'"level": "0"'), 1, '"level"'),
        (good + b"\n\n" + good, 3, "was in line 1"),
    ],
)
def test_damage_is_named_in_one_line_with_file_and_line(tmp_path, content, line, reason):
    path = tmp_path / "some" / "run" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RecordsError) as caught:
        records.read(tmp_path)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert message.startswith(f"{path}, line {line}: " if line else f"{path}: ")


def test_no_folder_and_no_rows(tmp_path):
    with pytest.raises(RecordsError, match="no such folder"):
        records.read(tmp_path / "missing")
    with pytest.raises(RecordsError, match=r"no rows\.jsonl"):
        records.read(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RecordsError, match="no such folder"):
        records.read(file)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    records.write(tmp_path / "a", [row("a")])
    records.write(tmp_path / "b", [row("b")])
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        records.read(tmp_path)


def test_a_copied_run_counts_once_and_two_runs_of_one_name_are_refused(tmp_path):
    records.write(tmp_path / "a", [row(accuracy=0.1), row(level=1, accuracy=0.2)])
    shutil.copytree(tmp_path / "a", tmp_path / "backup" / "a")
    assert len(records.read(tmp_path)) == 2

    records.write(tmp_path / "backup" / "a", [row(accuracy=0.1), row(level=1, accuracy=0.3)])
    with pytest.raises(RecordsError, match=r"run run is also in .*other rows"):
        records.read(tmp_path)
    records.write(tmp_path / "backup" / "a", [row(accuracy=0.1)])
    with pytest.raises(RecordsError, match="run run is also in"):
        records.read(tmp_path)
