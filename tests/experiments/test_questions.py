"""Questions that come along: each is right, asked once, and apart from the examples."""

import re

import pytest

from experiments.evaluation import questions

KINDS = [questions.past_tense, questions.capitals, questions.opposites, questions.addition, questions.word_problems]


@pytest.mark.parametrize("make", KINDS)
def test_each_is_asked_once_and_none_is_an_example(make) -> None:
    found = make()
    texts = [one.text for one in (*found.items, *found.shots)]
    assert len(set(texts)) == len(texts) > 60
    assert found.name == make.__name__
    assert len(found.wordings) >= 3
    assert all("{text}" in wording and wording.format(text="x") for wording in found.wordings.values())
    for one in (*found.items, *found.shots):
        assert one.answer == one.answer.strip() != ""
        assert not one.choices or (one.choices.count(one.answer) == 1 and len(set(one.choices)) == len(one.choices) > 2)
    assert make() == found
    assert make(seed=1).items != found.items
    few = make(items=5)
    assert few.shots == found.shots
    assert few.items == found.items[:5]


def test_sums_are_right() -> None:
    found = questions.addition(digits=3)
    for one in found.items:
        first, second = map(int, one.text.split(" + "))
        assert int(one.answer) == first + second
        assert {len(str(first)), len(str(second))} == {3}


def test_problems_are_solved_by_their_steps() -> None:
    """Every step is a true equation of what the story or a step before has given; the last one has the answer."""
    for one in questions.word_problems().items:
        known = {int(number) for number in re.findall(r"\d+", one.text)}
        steps = one.reasoning.rstrip(".").split(". ")
        assert len(steps) >= 2
        for step in steps:
            left, right = step.split(" = ")
            first, sign, second = left.split()
            assert {int(first), int(second)} <= known
            made = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[sign](
                int(first), int(second)
            )
            assert made == int(right) >= 0
            assert sign != "/" or int(first) % int(second) == 0
            known.add(made)
        assert right == one.answer


def test_words_are_as_in_a_dictionary() -> None:
    found = questions.past_tense()
    known = {one.text: one.answer for one in (*found.items, *found.shots)}
    assert (known["go"], known["swim"], known["try"], known["stop"]) == ("went", "swam", "tried", "stopped")
    for verb, past in known.items():
        if past.endswith("ed") and verb not in ("lead", "feed", "need"):
            regular = {f"{verb}ed", f"{verb}d", f"{verb[:-1]}ied", f"{verb}{verb[-1]}ed"}
            assert past in regular, verb
    capital = {one.text: one.answer for one in (*questions.capitals().items, *questions.capitals().shots)}
    assert (capital["Brazil"], capital["Ethiopia"], capital["Australia"]) == ("Brasília", "Addis Ababa", "Canberra")
