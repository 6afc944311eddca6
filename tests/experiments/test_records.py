"""Rows come back as they were written, and damage is named."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from experiments.records.rows import _rows as rows_of_file
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
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e100, 1e100) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


# hypothesis draws text that it found in the sources too: the prefix keeps such a name from being a known column
unknown_columns = st.text().map("own {}".format)


@given(extra=st.dictionaries(unknown_columns, json_values, max_size=4))
def test_any_json_value_survives_in_one_line(extra, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    written = {**extra, **row("a", 3)}
    path = records.write(folder, [written])
    assert path.read_bytes().count(b"\n") == 1
    found = records.read(folder)
    assert set(found.columns) == set(written)
    assert rows_of_file(path) == [written]


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


@pytest.mark.parametrize("rest", [b'{"format": 1, "run"', b"nonsense\n", b"\xff\n"])
def test_a_repetition_replaces_what_cannot_be_read(tmp_path, rest):
    """Not what is written stays, but what it says: a line that is broken, whole rows before it or not."""
    path = records.write(tmp_path, [row(), row(level=1)])
    good = path.read_bytes()
    path.write_bytes(good + rest)
    records.write(tmp_path, [row(), row(level=1)])
    assert path.read_bytes() == good


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
        [row(test_accuracy=7.5)],
        [row(notes={1: "a", "1": "b"})],
        [row(notes="\ud800")],
        [row(loss=10**400)],
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
            found = rows_of_file(path)
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
        (good.replace(b'"format": 1', b'"format": 3'), 1, "format 3, this version reads 1 and 2"),
        (good.replace(b'"format": 1', b'"format": true'), 1, "format True"),
        (good.replace(b'"format": 1', b'"format": 1.0'), 1, "format 1.0"),
        (good.replace(b'"format": 1, ', b""), 1, "format None"),
        (good.replace(b'"run": "run", ', b""), 1, '"run"'),
        (good.replace(b'"level": 0', b'"level": "0"'), 1, '"level"'),
        (good + b"\n\n" + good, 3, "was in line 1"),
        (good.replace(b"0}", b'0, "kept": 1, "kept": 2}'), 1, "'kept' comes twice"),
        (good.replace(b"0}", b'0, "config": {"a": 1, "a": 1}}'), 1, "'a' comes twice"),
        (good.replace(b"0}", b'0, "loss": 1e999}'), 1, "1e999 is not JSON"),
        (good.replace(b"0}", b'0, "loss": 1' + 400 * b"0" + b"}"), 1, "'loss' is 1"),
        (good.replace(b"0}", b'0, "x": ' + 60 * b"[" + 60 * b"]" + b"}"), 1, "nested deeper"),
        (good.replace(b'"run": "run"', b'"run": "a\\nb"'), 1, '"run"'),
        (good.replace(b'"run": "run"', b'"run": "\\ud800"'), 1, '"run"'),
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


LAYER = {"name": "fc1.weight", "shape": [2, 3], "kept": 2, "total": 6}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"test_accuracy": 7.5}, "'test_accuracy' is 7.5, no fraction from 0 to 1"),
        ({"validation_accuracy": "0.9"}, "'validation_accuracy' is '0.9', no fraction"),
        ({"test_accuracy": True}, "'test_accuracy' is True, no fraction"),
        ({"density": -1}, "'density' is -1, no fraction"),
        ({"requested_density": [0.5]}, "'requested_density' is [0.5], no fraction"),
        ({"kept": -3}, "'kept' is -3, no count"),
        ({"kept": 2.5}, "'kept' is 2.5, no count"),
        ({"macs": "many"}, "'macs' is 'many', no count"),
        ({"prunable": 10, "kept": 11}, "'kept' is 11, more than 'prunable', which is 10"),
        ({"parameters": 5, "nonzero": 6}, "'nonzero' is 6, more than 'parameters'"),
        ({"dense_macs": 5, "macs": 6}, "'macs' is 6, more than 'dense_macs'"),
        ({"round": 3, "rounds": 2}, "'round' is 3, more than 'rounds'"),
        ({"prunable": 10, "kept": 5, "density": 0.1}, "'density' is 0.1, but 'kept' by 'prunable' 0.5"),
        ({"seed": 1.0}, "'seed' is 1.0, no whole number"),
        ({"seed": -1}, "'seed' is -1, no whole number"),
        ({"test_loss": "nan"}, "'test_loss' is 'nan', no number"),
        ({"test_loss": False}, "'test_loss' is False, no number"),
        ({"test_loss": 1e101}, "'test_loss' is 1e+101, beyond 1e+100"),
        ({"latency_ms": -1.0}, "'latency_ms' is -1.0, no number of at least 0"),
        ({"seconds": 1e300}, "'seconds' is 1e+300"),
        ({"scorer": 3}, "'scorer' is 3, no name"),
        ({"model": ""}, "'model' is '', no name"),
        ({"data": "two\nlines"}, "no name"),
        ({"network": "../*"}, "'network' is '../*', no key"),
        ({"emptied": "fc1"}, "'emptied' is 'fc1', no list of names"),
        ({"sparse": [1]}, "'sparse' is [1], no list of names"),
        ({"layers": {}}, "'layers' is {}, no list of layers"),
        ({"layers": [LAYER, LAYER]}, "no list of layers"),
        ({"layers": [LAYER | {"kept": 7}]}, "no list of layers"),
        ({"layers": [LAYER | {"name": 7}]}, "no list of layers"),
        ({"layers": [LAYER | {"total": None}]}, "no list of layers"),
        ({"layers": [LAYER | {"shape": 6}]}, "no list of layers"),
        ({"layers": [{"name": "fc1.weight"}]}, "no list of layers"),
        ({"losses": [[1.0]]}, "'losses' is [[1.0]], no list of pairs"),
        ({"losses": [[None, 1.0]]}, "no list of pairs"),
        ({"losses": [[-1, 1.0]]}, "no list of pairs"),
        ({"losses": 3}, "no list of pairs"),
        ({"versions": {"torch": 2}}, "'versions' is {'torch': 2}, no object of names"),
        ({"config": [1]}, "'config' is [1], no object"),
    ],
    ids=str,
)
def test_a_value_that_its_column_cannot_hold_is_named_in_one_line(tmp_path, values, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (row(), row(level=1, **values))))
    for act in (lambda: records.read(tmp_path), lambda: records.write(tmp_path / "new", [row(level=1, **values)])):
        with pytest.raises(RecordsError) as caught:
            act()
        message = str(caught.value)
        assert said in message
        assert "\n" not in message
        assert message.endswith("; repeat this run, or move it away")
        assert message.startswith((f"{path}, line 2: ", f"{tmp_path / 'new' / 'rows.jsonl'}, row 1: "))


def test_columns_may_lack_be_null_and_at_their_ends(tmp_path):
    ends = {"density": 0, "test_accuracy": 1, "prunable": 0, "kept": 0, "seconds": 0, "losses": [[0, None]]}
    ends |= {
        "kept": 3.0,
        "prunable": 4,
        "density": 0.75,
        "layers": [LAYER],
        "versions": {},
        "config": {},
        "emptied": [],
    }
    rows = [row(), row(level=1, **ends), row(level=2, **dict.fromkeys(ends)), row(level=3, free=[True, {"x": "y"}])]
    records.write(tmp_path, rows)
    assert rows_of_file(tmp_path / "rows.jsonl") == rows


def test_layers_of_one_run_have_the_same_names(tmp_path):
    rows = [row(layers=[LAYER]), row(level=1), row(level=2, layers=[LAYER | {"name": "fc2.weight"}])]
    with pytest.raises(RecordsError, match=r"row 3: \"layers\" have other names than in line 1; repeat this run"):
        records.write(tmp_path, rows)
    records.write(tmp_path, [*rows[:2], rows[2] | {"run": "other"}])


@pytest.mark.parametrize("known", [b"[1, 2]\n", b"[" * 100_000, good + b"\n" + good, b"\xff", b"{}"])
def test_rows_are_written_over_what_is_no_rows(tmp_path, known):
    (tmp_path / "rows.jsonl").write_bytes(known)
    records.write(tmp_path, [row(accuracy=0.5)])
    assert rows_of_file(tmp_path / "rows.jsonl") == [row(accuracy=0.5)]


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
