"""Requests and their answers, exact match without decoding, and decoders cut between two layers."""

import importlib
import random

import pytest
import torch

from experiments.data import Examples
from experiments.data.bookings import PLACES, TEMPLATES, bookings, request
from experiments.models.cutting import lower_part, upper_part
from experiments.tasks import Completion, LanguageModelling, evaluate
from pruning.errors import DataError, ModelError

transformers = pytest.importorskip("transformers")

END = 0
data = importlib.import_module("experiments.data.bookings")  # the function has its name too


@pytest.fixture
def characters(monkeypatch):
    """Tokens that are characters."""
    monkeypatch.setattr(data, "tokeniser", lambda *_: lambda text: [ord(sign) for sign in text])
    monkeypatch.setattr(data, "ending", lambda *_: END)


def llama(**sizes):
    torch.manual_seed(0)
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=128, **config | sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)  # so that the likeliest token depends on what is before it
    return model


def test_every_request_says_what_its_answer_says(characters):
    splits = bookings("tiny", training=40, validation=10, test=30, length=160)
    places = {}
    for part in ("train", "validation", "test"):
        examples = getattr(splits, part)
        for ids, mask, labels in zip(*(examples[n] for n in ("input_ids", "attention_mask", "labels")), strict=True):
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            text = "".join(map(chr, ids[mask.bool()][:-1].tolist()))
            asked, _, answer = text.partition("\n->")
            counted = labels != -100
            assert torch.equal(labels[counted], ids[counted])
            assert "".join(map(chr, labels[counted].tolist())) == answer + chr(END)
            place, count, day, clock = answer.strip().split(" | ")
            assert place in asked
            assert data.NUMBERS[int(count) - 2] in asked
            assert any(full.startswith(day) and full in asked for full in data.DAYS)
            hour = int(clock[:2])
            assert data.HOURS[(hour - 1) % 12] in asked
            assert ("evening" if hour > 12 else "morning") in asked
            places.setdefault(part, set()).add(place)
    assert not places["test"] & (places["train"] | places["validation"])


def test_a_draw_is_a_function_of_its_seed(characters):
    one, again, other = (bookings("tiny", training=5, validation=1, test=1, length=128, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.train["input_ids"], again.train["input_ids"])
    assert not torch.equal(one.train["input_ids"], other.train["input_ids"])
    assert len({request(random.Random(n), PLACES).text for n in range(50)}) > 40
    assert all("{place}" in template for template in TEMPLATES)


def test_exact_match_is_what_greedy_decoding_gives():
    """Half of the answers are what the model writes, and in the others one token is another."""
    model, count, asked, written = llama(), 8, 6, 5
    torch.manual_seed(1)
    ids = torch.randint(1, 128, (count, asked))
    options = {"max_new_tokens": written, "do_sample": False, "pad_token_id": END, "eos_token_id": 127}
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    whole = torch.nn.functional.pad(whole, (0, asked + written - whole.shape[1]), value=END)
    labels = torch.full_like(whole, -100)
    labels[:, asked:] = whole[:, asked:]
    for row in range(0, count, 2):
        labels[row, asked + row % written] = (labels[row, asked + row % written] + 1) % 128
    examples = Examples(input_ids=whole, attention_mask=torch.ones_like(whole), labels=labels)
    found = evaluate(Completion(evaluation_batch=3), model, examples)
    ended = (whole == 127).any(1)  # decoding stopped there, so what follows was not written
    assert not ended.any()
    assert found["exact_match"] == 0.5
    plain = evaluate(LanguageModelling(), model, examples)
    assert {name: found[name] for name in plain} == pytest.approx(plain)
    assert found["token_accuracy"] == pytest.approx(1 - 4 / (count * written))


@pytest.mark.parametrize("layer", [1, 3])
def test_a_cut_decoder_gives_what_the_whole_one_gives(layer):
    whole, lower, upper = llama(), llama().model, llama()
    ids = torch.randint(128, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    lower_part("llama", lower, layer)
    upper_part("llama", upper, layer)
    assert len(upper.model.layers) == 4 - layer
    with torch.no_grad():
        states = lower(input_ids=ids, attention_mask=mask).last_hidden_state
        found = upper(inputs_embeds=states, attention_mask=mask).logits
        want = whole(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(found[mask.bool()], want[mask.bool()])


@pytest.mark.parametrize("layer", [-1, 4])
def test_there_is_no_such_layer(layer):
    with pytest.raises(ModelError, match="has 4 layers: give 0 to 3"):
        upper_part("llama", llama(), layer)


def test_another_kind_of_model_is_not_cut():
    with pytest.raises(ModelError, match="is not cut at a layer here"):
        upper_part("mine", torch.nn.Sequential(torch.nn.Linear(2, 2)), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"training": 0}, "give at least 1"), ({"length": 20}, "a request with its answer has")],
)
def test_what_cannot_be_is_said_in_one_line(characters, options, message):
    with pytest.raises(DataError, match=message) as caught:
        bookings("tiny", **{"training": 2, "validation": 1, "test": 1} | options)
    assert "\n" not in str(caught.value)


def test_answers_are_wanted():
    task, ids = Completion(), torch.ones(2, 4, dtype=torch.int64)
    for labels, message in ((None, "no column labels"), (torch.full((2, 4), -100), "give every example an answer")):
        batch = {"input_ids": ids} | ({} if labels is None else {"labels": labels})
        with pytest.raises(DataError, match=message):
            task.check(None, batch)
