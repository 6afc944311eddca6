"""Rows of real runs, damaged in one place: whoever reads them gives an answer, or refuses them by name."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from experiments.records.values import resolve
from experiments.report import table
from experiments.results import statistics
from experiments.results.checklist import checklist
from experiments.results.comparison import comparisons
from experiments.results.exclusions import exclusions, measured
from experiments.results.figures.layers import layer_densities
from experiments.results.figures.training import losses
from experiments.results.gallery import FigureOptions, gallery
from experiments.results.page import data, render
from experiments.results.wording import cells, curve_cells, words
from pruning.errors import RecordsError

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def whole(swept) -> Rows:
    """Run → its rows."""
    paths = sorted((swept / "runs").rglob(records.FILE))
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def written(folder: Path, rows: Rows) -> Path:
    """As a damaged disk or another program would leave them: unchecked."""
    for run, lines in rows.items():
        (folder / run).mkdir(exist_ok=True, parents=True)
        (folder / run / records.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def refusal(work: Callable[[], Any]) -> str:
    """Why `work` refuses its rows; nothing where it does its work."""
    try:
        work()
    except RecordsError as error:
        return str(error)
    return ""


def read_by_all(folder: Path) -> None:
    """What commands work out of rows; each may refuse them."""
    frame, _ = measured(records.read(folder), resolve(records.read(folder)))
    exclusions(frame, resolve(frame))
    final = statistics.points(frame)
    found, _ = comparisons(frame, "magnitude")
    for comparison in found:
        cells(comparison)
        curve_cells(comparison)
        words(comparison)
    table(statistics.summarise(frame), statistics.dense(frame), "test_accuracy")
    checklist(frame)
    data.configuration(frame)
    data.runs(frame, [], folder, folder)
    for work in (
        lambda: statistics.summarise(frame, "test_loss"),
        lambda: layer_densities(final),
        lambda: losses(final, frame),
        lambda: json.dumps(data.curves(frame, resolve(frame)), allow_nan=False),
    ):
        assert "\n" not in refusal(work)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all that lies in `value`."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in parts:
        yield (*path, key)
        yield from places(item, (*path, key))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["magnitude", "0.5", "fc1.weight", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damaged(draw, rows: Rows) -> Rows:
    """`rows` with one value changed, a little or wholly, renamed, doubled or removed, anywhere in them."""
    rows = json.loads(json.dumps(rows))
    row = draw(st.sampled_from(rows[draw(st.sampled_from(sorted(rows)))]))
    inner = draw(st.booleans())
    path = draw(st.sampled_from(sorted((p for p in places(row) if inner or len(p) == 1), key=str)))
    place = row
    for key in path[:-1]:
        place = place[key]
    key, value = path[-1], place[path[-1]]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    how = draw(st.sampled_from(["other", "other", "remove", "rename", "double"] + 3 * ["change"] * number))
    if how == "remove":
        del place[key]
    elif how == "rename" and isinstance(place, dict):
        place[draw(st.sampled_from(sorted(row)) | st.text())] = place.pop(key)
    elif how == "double" and isinstance(place, list):
        place.insert(key, value)
    elif how == "change":
        place[key] = draw(st.sampled_from([-value, 10 * value, value / 2, value + 1, str(value), 0, bool(value)]))
    else:
        place[key] = draw(json_values)
    return rows


@given(choice=st.data())
def test_rows_damaged_in_one_place_are_read_or_refused_in_one_line(choice, whole, tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("damaged"), choice.draw(damaged(whole)))
    assert "\n" not in refusal(partial(read_by_all, folder))


def test_rows_that_are_whole_are_read(whole, tmp_path):
    read_by_all(written(tmp_path, whole))


def renamed(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["layers"][0]["name"] = "elsewhere"


def gone(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["network"] = "0" * 16


def strange(rows: list[dict[str, Any]]) -> None:
    rows[1]["losses"] = [[0, 1e100], [3, None]]
    rows[1] |= {"latency_ms": 0, "test_accuracy": 0, "density": 0, "kept": 0}
    rows[2] |= {"seconds": 1e11, "macs": 0, "versions": {}}


@pytest.mark.parametrize("harm", [renamed, gone, strange])
def test_figures_and_page_are_drawn_or_refused(harm, whole, swept, tmp_path):
    rows = json.loads(json.dumps(whole))
    harm(rows["random-1"])
    frame = records.read(written(tmp_path / "runs", rows))
    found, refused = comparisons(frame, "magnitude")
    paths, skipped = gallery(frame, FigureOptions(compared=found, store=swept / "store"), tmp_path)
    assert paths
    assert [line.split(":")[0] for line in skipped] == {
        renamed: ["layers", "weights"],
        gone: ["overlap", "weights"],
        strange: [],
    }[harm]
    render(frame, [], tmp_path / "runs", tmp_path, comparisons=found, refused=refused)
