"""Overlap of test items with what was seen, against a search of every window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import records
from experiments.contamination import main
from experiments.data import Examples, Splits, digits
from experiments.evaluation.contamination import overlapping, overlaps, repeated, texts_of, without
from experiments.store.retrieval import network_of
from pruning.errors import DataError
from tests.experiments.running import run, setting_of

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=12).map(lambda one: np.array(one, dtype=np.int64)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 7))
def test_overlap_is_that_of_every_window(items, seen, n) -> None:
    known = {
        tuple(text[at : at + size]) for text in seen for size in range(1, n + 1) for at in range(len(text) - size + 1)
    }
    for item, found in zip(items, overlapping(items, seen, n), strict=True):
        size = min(n, len(item))
        windows = {tuple(item[at : at + size]) for at in range(len(item) - size + 1)} if size else set()
        assert found == bool(windows & known)


def test_a_planted_leak_is_found_among_many_tokens_and_a_clean_set_is_clean() -> None:
    draw = np.random.default_rng(0)
    seen = [draw.integers(0, 30_000, 500) for _ in range(100)]
    items = [draw.integers(0, 30_000, 40) for _ in range(50)]
    assert not overlapping(items, seen, 8).any()
    items[7][10:18] = seen[31][200:208]
    items[9][30:40] = seen[99][:10]
    items[11][5:12] = seen[50][100:107]  # seven tokens alone
    assert np.flatnonzero(overlapping(items, seen, 8)).tolist() == [7, 9]
    assert np.flatnonzero(overlapping(items, seen, 10)).tolist() == [9]


def test_windows_do_not_reach_from_text_to_text() -> None:
    seen = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    assert overlapping([np.array([3, 4]), np.array([2, 3]), np.array([4, 5, 7])], seen, 2).tolist() == [
        False,
        True,
        True,
    ]


def test_whole_examples() -> None:
    draw = np.random.default_rng(0)
    seen, items = draw.integers(0, 256, (20, 12), np.uint8), draw.integers(0, 256, (5, 12), np.uint8)
    items[2] = seen[11]
    items[3] = seen[4]
    items[3, 0] ^= 1
    assert repeated(items, seen).tolist() == [False, False, True, False, False]


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="n=0"):
        overlapping([], [], 0)
    with pytest.raises(DataError, match="below 0"):
        overlapping([np.array([1, -100])], [np.array([1])], 2)


def leaky(leaked: int = 12, **options) -> Splits:
    """The digits, of which some training images are in the test part too, with the next class as their target."""
    parts = digits(**options)
    train, test = parts.train, {name: column.clone() for name, column in parts.test.items()}
    test["inputs"][:leaked] = train["inputs"][:leaked]
    test["targets"][:leaked] = (train["targets"][:leaked] + 1) % 10
    return Splits(train, parts.validation, Examples(**test))


def test_the_command_measures_networks_with_and_without_the_leak(tmp_path, capsys) -> None:
    target = f"data.load._target_={__name__}.leaky"
    options = ("density=0.3", target, f"store={tmp_path}/store")
    rows = run(tmp_path, *options)
    setting = setting_of(tmp_path, *options)
    config = {**setting.config.as_dict()}
    records.write(tmp_path / "again", [{**row, "config": config, "run": "name", "format": 2} for row in rows])
    assert main([str(tmp_path / "again"), "--store", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    assert "12" in printed
    test = setting.splits.test
    for row in rows:
        model = network_of(row, setting.new_model(), tmp_path / "store").eval()
        with torch.no_grad():
            right = model(test["inputs"]).argmax(1) == test["targets"]
        assert row["test_accuracy"] == pytest.approx(float(right.float().mean()))
        assert f"{100 * float(right.float().mean()):.2f}" in printed
        assert f"{100 * float(right[12:].float().mean()):.2f}" in printed
        assert right[12:].float().mean() > right.float().mean()
    diverged = [{**row, "config": config, "run": "lost", "format": 2, "test_accuracy": None} for row in rows]
    records.write(tmp_path / "again" / "lost", diverged)
    assert main([str(tmp_path / "again"), "--store", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out.startswith(printed.rstrip())  # and a line of what was left out
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert main([str(tmp_path / "again"), "--against", str(tmp_path / "bytes")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "again"), "--metric", "nothing"]) == 1
    assert "no metric 'nothing'" in capsys.readouterr().err


def test_texts_are_read_without_their_padding() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    targets = torch.tensor([0, 1])
    found = texts_of({"input_ids": ids, "attention_mask": mask, "targets": targets})
    assert [text.tolist() for text in found] == [[5, 6, 7], [8]]
    assert texts_of({"inputs": torch.randn(2, 3), "targets": targets}) is None
    splits = Splits(*(Examples(input_ids=ids, attention_mask=mask, targets=targets) for _ in range(3)))
    assert [int(one.flags.sum()) for one in overlaps(splits, [2, 8])] == [2, 2]
    more = [np.array([9, 5, 6, 7, 1])]
    clean = Splits(Examples(input_ids=ids + 20, targets=targets), splits.validation, splits.test)
    assert overlaps(clean, [2], more=more)[0].flags.tolist() == [True, False]
    assert len(without(splits.test, np.array([True, False]))) == 1
    with pytest.raises(DataError, match="nothing is left"):
        without(splits.test, np.array([True, True]))
