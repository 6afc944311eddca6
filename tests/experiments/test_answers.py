"""Answers to single examples beside those of the dense network, against counts by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import run as app
from experiments.evaluation import AnswerCollector, Answered, compare_rows, describe_answers, measure_churn
from experiments.records.answers import decode, encode
from experiments.records.values import resolve, resolve_metric
from experiments.store.retrieval import network_of
from pruning.errors import RecordsError
from tests.experiments.running import run, setting_of


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.sampled_from([2, 256, 257, 2**16, 2**32]))
def test_answers_come_back_from_their_text(numbers: list[int], below: int) -> None:
    given_ = [number % below for number in numbers]
    text = encode(given_)
    assert decode(text).tolist() == given_
    assert text.isprintable()


def test_a_thousand_answers_take_less_than_a_byte_and_a_half_each() -> None:
    answers = np.random.default_rng(0).integers(0, 10, 1000)
    assert len(encode(answers)) < 1000


@pytest.mark.parametrize("wrong", [[-1], [2**32], [[1, 2]]])
def test_other_answers_are_refused(wrong: list) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        encode(wrong)


@pytest.mark.parametrize("text", ["", "1:", "1:!!", "3:eJwDAAAAAAE=", "1:eJwDAAAAAA"])
def test_broken_texts_are_refused(text: str) -> None:
    with pytest.raises(RecordsError, match="answers"):
        decode(text)


TARGETS = torch.tensor([0, 0, 1, 1, 1, 3, 3, 3])
DENSE = torch.tensor([0, 0, 1, 1, 0, 3, 3, 1])
FOUND = torch.tensor([0, 1, 1, 0, 1, 3, 1, 0])
"""Of eight: the second, fourth and seventh are lost, the fifth is gained, the last is wrong in another way."""


def test_shares_by_hand() -> None:
    assert measure_churn(FOUND, DENSE, TARGETS) == {"churn": 5 / 8, "lost": 3 / 8, "gained": 1 / 8}
    assert measure_churn(DENSE, DENSE, TARGETS) == {"churn": 0.0, "lost": 0.0, "gained": 0.0}


def test_one_network_by_hand() -> None:
    confidences = torch.tensor([0.95, 0.95, 0.55, 0.55, 0.55, 0.35, 0.35, 0.35])
    collected = AnswerCollector()
    collected.add(FOUND[:3], confidences[:3], TARGETS[:3])
    collected.add(FOUND[3:], confidences[3:], TARGETS[3:])
    found = describe_answers(collected.together())
    # bins: 0.95: 1 of 2 right; 0.55: 2 of 3; 0.35: 1 of 3
    error = 2 / 8 * abs(0.5 - 0.95) + 3 / 8 * abs(2 / 3 - 0.55) + 3 / 8 * abs(1 / 3 - 0.35)
    assert found["test_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert (found["worst_class"], found["test_worst_class_accuracy"]) == (3, pytest.approx(1 / 3))  # of class 2 is none
    assert decode(found["answers"]).tolist() == FOUND.tolist()
    assert describe_answers(Answered(FOUND, confidences * math.nan, TARGETS))["test_calibration_error"] is None
    assert set(describe_answers(None).values()) == {None}


def test_rows_of_a_run_have_them(tmp_path) -> None:
    options = ("density=[0.3,0.05]", "controls=[random]")
    rows = run(tmp_path, *options)
    setting = setting_of(tmp_path, *options)
    batch = setting.splits.test
    targets = batch["targets"]
    answers = []
    for row in rows:
        model = network_of(row, setting.new_model(), tmp_path / "store").eval()
        with torch.no_grad():
            logits = model(batch["inputs"])
        answers.append(logits.argmax(1))
        assert decode(row["answers"]).tolist() == answers[-1].tolist()
        assert row["test_accuracy"] == pytest.approx(float((answers[-1] == targets).float().mean()))
        assert row["test_churn"] == pytest.approx(float((answers[-1] != answers[0]).float().mean()))
        assert row["test_accuracy"] - rows[0]["test_accuracy"] == pytest.approx(row["test_gained"] - row["test_lost"])
        of_class = [float((answers[-1] == targets)[targets == c].float().mean()) for c in range(10)]
        assert row["test_worst_class_accuracy"] == pytest.approx(min(of_class))
        assert of_class[row["worst_class"]] == min(of_class)
        assert 0 < row["test_calibration_error"] < 1
        assert (row["targets"] is not None) == (row["level"] == 0)
    assert decode(rows[0]["targets"]).tolist() == targets.tolist()
    assert rows[0]["test_churn"] == 0 < rows[2]["test_churn"]


def test_they_are_metrics_with_a_direction(tmp_path) -> None:
    import pandas as pd  # noqa: PLC0415  # slow to import

    frame = pd.DataFrame([{"test_lost": 0.1, "metrics": [{"name": "accuracy", "higher_is_better": True}]}])
    for value in (resolve(frame, "test_lost"), resolve_metric(frame, "lost")):
        assert value.label == "Test examples lost (%, lower is better)"
        assert value.lost(0.0, 0.1) == 0.1
    with pytest.raises(RecordsError, match="no metric 'gained'"):
        resolve_metric(frame, "gained")


def test_rows_without_answers_have_none(tmp_path) -> None:
    none = dict.fromkeys(("test_churn", "test_lost", "test_gained", "targets"))
    assert compare_rows({"answers": None}, {"answers": None}) == none
    for row in app.run(setting_of(tmp_path, "data=diabetes", "density=0.3"), tmp_path / "run", "name"):
        assert {name: row[name] for name in none} == none
        assert row["answers"] is row["worst_class"] is None
