"""Prompt tuning: learned embeddings before those of the input."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.adaptation.freezing import check_free, freeze
from pruning.errors import AdaptationError
from pruning.parameters import unwrapped


class Prompt:
    """Learned positions before the input of a transformer, which is frozen but for them, until `detach()`.

    Lester et al. 2021. The positions are seen by all others, and what the model gives for them is left out: logits and
    states have the positions of the input. They are a parameter of the model, named `prompt`, so that its `state_dict`
    has them. They are drawn among the embeddings of the vocabulary, or from a normal law of the deviation of the
    states where the model has no vocabulary.
    """

    def __init__(self, model: nn.Module, length: int, seed: int = 0):
        """Put `length` positions before the input of the one transformer of `model`.

        Raises:
            AdaptationError: a length below 1, an adaptation that is there already, or no model of transformers of one
                part that takes `inputs_embeds`. Then also in a forward pass: for inputs that a prompt does not
                lengthen, padding before the text, and more positions than the model has.
        """
        if length < 1:
            raise AdaptationError(f"prompt: length={length}: give at least 1")
        self.model = unwrapped(model)
        self._transformer = _transformer(self.model)
        check_free(self.model)
        self._embeddings = _embeddings(self._transformer)
        self._transformer.register_parameter("prompt", nn.Parameter(self._drawn(length, seed)))
        hook: Callable[..., Any] = self._before
        self._removers: list[Callable[[], Any]] = [
            partial(self._transformer._parameters.pop, "prompt", None),
            freeze(self.model, self.parameters(), "a prompt"),
            self._transformer.register_forward_pre_hook(hook, with_kwargs=True).remove,
            self._transformer.register_forward_hook(self._after).remove,
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: [length, width]."""
        yield self._transformer.get_parameter("prompt")

    def detach(self) -> None:
        """Take the prompt out; the model is as before, and so is what may be trained of it."""
        while self._removers:
            self._removers.pop()()

    def _drawn(self, length: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self._embeddings is not None:
            table = self._embeddings.weight.detach()
            return table[torch.randint(len(table), (length,), generator=generator).to(table.device)].clone()
        width = int(self._transformer.config.hidden_size)  # type: ignore[union-attr,arg-type]  # of transformers
        like = next(self._transformer.parameters())
        return (0.02 * torch.randn(length, width, generator=generator)).to(like)

    def _before(self, body: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
        named = {**dict(zip(inspect.signature(body.forward).parameters, args, strict=False)), **kwargs}
        given = {name: value for name, value in named.items() if value is not None}
        ids, states = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        mask = given.pop("attention_mask", None)
        kinds, places = given.pop("token_type_ids", None), given.pop("position_ids", None)
        _check(given, mask)
        if states is None:
            assert self._embeddings is not None
            states = self._embeddings(ids)
        prompt = self._transformer.get_parameter("prompt")
        count, length = len(states), len(prompt)
        most = getattr(self._transformer.config, "max_position_embeddings", None)
        if most is not None and length + states.shape[1] > most:
            raise AdaptationError(
                f"prompt: its {length} positions and {states.shape[1]} of the input are more than the {most} of the "
                "model: take a shorter prompt, or shorter inputs"
            )
        states = torch.cat([prompt.to(states.dtype).expand(count, -1, -1), states], dim=1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(count, length), mask], dim=1)
        if kinds is not None:
            given["token_type_ids"] = torch.cat([kinds.new_zeros(count, length), kinds], dim=1)
        if places is not None:
            first = torch.arange(length, device=places.device).expand(len(places), -1)
            given["position_ids"] = torch.cat([first, places + length], dim=1)
        return (), {**given, "inputs_embeds": states, "attention_mask": mask}

    def _after(self, module: Any, args: Any, outputs: Any) -> Any:
        length = len(self._transformer.get_parameter("prompt"))
        outputs["last_hidden_state"] = outputs["last_hidden_state"][:, length:]
        if outputs.get("hidden_states") is not None:
            outputs["hidden_states"] = tuple(states[:, length:] for states in outputs["hidden_states"])
        if outputs.get("pooler_output") is not None:
            outputs["pooler_output"] = module.pooler(outputs["last_hidden_state"])
        return outputs


def _check(given: Mapping[str, Any], mask: Tensor | None) -> None:
    """Raise `AdaptationError` for inputs of which it is not known what they are with more positions."""
    unknown = [name for name, value in given.items() if name not in _KNOWN and not _is_empty(value)]
    if unknown or given.get("return_dict") is False:
        name = unknown[0] if unknown else "return_dict=False"
        raise AdaptationError(
            f"prompt: {name} is given, which a prompt does not lengthen: leave it out (generate() with use_cache=False)"
        )
    if mask is not None and (mask.dim() != 2 or not bool(mask[:, 0].all())):
        raise AdaptationError(
            f"prompt: attention_mask {list(mask.shape)} has padding before the text, or several dimensions: pad at "
            "the end, [texts, positions]"
        )


def _is_empty(cache: Any) -> bool:
    """Whether it is a cache of transformers that holds nothing yet."""
    return hasattr(cache, "get_seq_length") and cache.get_seq_length() == 0


_KNOWN = ("use_cache", "output_hidden_states", "output_attentions", "return_dict")
"""Further inputs of which a prompt is independent."""


def _transformer(model: nn.Module) -> nn.Module:
    """The body of the outermost model of transformers, without a head: what a head finds has the input's positions."""
    for module in model.modules():
        if hasattr(module, "get_input_embeddings") and hasattr(module, "config"):
            body: nn.Module = getattr(module, "base_model", module)
            name = type(body).__name__
            if getattr(body.config, "is_encoder_decoder", False) or not hasattr(body.config, "hidden_size"):
                raise AdaptationError(f"{name}: has two parts, or states of no one width: a prompt is of a single one")
            if "inputs_embeds" not in inspect.signature(body.forward).parameters:
                raise AdaptationError(f"{name}: takes no inputs_embeds, before which a prompt could be")
            return body
    raise AdaptationError(f"{type(model).__name__}: has no model of transformers: a prompt is of embeddings before one")


def _embeddings(transformer: Any) -> nn.Embedding | None:
    """The table of a model that reads tokens; None of one that reads states alone."""
    try:
        found = transformer.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None
