"""States of a pretrained model's lower layers, which are frozen: made once, for all runs that train above."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from experiments.data.cache import make_once
from experiments.data.content import content_of_tensors
from experiments.models.cutting import lower_part
from experiments.models.pretrained import transformers_model

log = logging.getLogger("experiments")

_BATCH = 128


def states_of(
    name: str | None,
    package: str | None,
    first_layer: int,
    columns: Mapping[str, Tensor],
    gguf_file: str | None = None,
) -> dict[str, Tensor]:
    """Columns "inputs_embeds", float32 [n, length, width], what enters layer `first_layer`, and "attention_mask".

    Args:
        name, package, gguf_file: of the model, as in `experiments.models.transformers_model`.
        first_layer: at least 1.
        columns: "input_ids" and "attention_mask", int64 [n, length].

    Raises `ModelError` for a model whose layers cannot be cut off there.
    """
    model: Any = transformers_model("AutoModel", name, gguf_file=gguf_file, package=package).eval()
    lower_part(str(name), model, first_layer)
    contents = (content_of_tensors(model.state_dict()), content_of_tensors(columns))
    key = " ".join((*contents, str(first_layer), torch.__version__, version("transformers")))

    @torch.no_grad()
    def make() -> Tensor:
        count = len(columns["input_ids"])
        log.info("%s: the states of %d texts after %d layers, once", name, count, first_layer)
        found = []
        for start in range(0, count, _BATCH):
            part = {column: rows[start : start + _BATCH] for column, rows in columns.items()}
            found.append(model(**part).last_hidden_state)
        return torch.cat(found)

    states = make_once(f"states-{sha256(key.encode()).hexdigest()[:32]}", make)
    return {"inputs_embeds": states, "attention_mask": columns["attention_mask"]}
