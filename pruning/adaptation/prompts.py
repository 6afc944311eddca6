"""Prompt tuning: learned embeddings before those of the input."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
            AdaptationError: a length below 1, a prompt that is there already, or no model of transformers that takes
                `inputs_embeds`.
        """
        if length < 1:
            raise AdaptationError(f"prompt: length={length}: give at least 1")
        self.model = unwrapped(model)
        self._transformer = _transformer(self.model)
        if "prompt" in self._transformer._parameters:
            raise AdaptationError("a prompt is there already: detach() it first")
        self._embeddings = _embeddings(self._transformer)
        self._required = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        for parameter in self._required:
            parameter.requires_grad_(False)
        self._transformer.register_parameter("prompt", nn.Parameter(self._drawn(length, seed)))
        hook: Callable[..., Any] = self._before
        self._removers: list[Callable[[], None]] = [
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
        self._transformer._parameters.pop("prompt", None)
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)

    def _drawn(self, length: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self._embeddings is not None:
            table = self._embeddings.weight.detach()
            return table[torch.randint(len(table), (length,), generator=generator).to(table.device)].clone()
        width = int(self._transformer.config.hidden_size)  # type: ignore[union-attr,arg-type]  # of transformers
        like = next(self._transformer.parameters())
        return (0.02 * torch.randn(length, width, generator=generator)).to(like)

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
        given = dict(kwargs)
        ids = given.pop("input_ids", args[0] if args else None)
        states = given.pop("inputs_embeds", None)
        mask = given.pop("attention_mask", args[1] if len(args) > 1 else None)
        if len(args) > 2:
            raise AdaptationError("prompt: more than input ids and attention mask come by position: give them by name")
        if states is None:
            assert self._embeddings is not None
            states = self._embeddings(ids)
        prompt = self._transformer.get_parameter("prompt")
        count = len(states)
        states = torch.cat([prompt.to(states.dtype).expand(count, -1, -1), states], dim=1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(count, len(prompt)), mask], dim=1)
        return (), {**given, "inputs_embeds": states, "attention_mask": mask}

    def _after(self, _: nn.Module, args: Any, outputs: Any) -> Any:
        length = len(self._transformer.get_parameter("prompt"))
        for name in ("logits", "last_hidden_state"):
            found = getattr(outputs, name, None)
            if isinstance(found, Tensor) and found.dim() == 3:  # positions; a class of the whole has none
                outputs[name] = found[:, length:]
        return outputs


def _transformer(model: nn.Module) -> nn.Module:
    """The outermost module that is a model of transformers."""
    for module in model.modules():
        if hasattr(module, "get_input_embeddings") and hasattr(getattr(module, "config", None), "hidden_size"):
            return module
    raise AdaptationError(f"{type(model).__name__}: has no model of transformers: a prompt is of embeddings before one")


def _embeddings(transformer: Any) -> nn.Embedding | None:
    """The table of a model that reads tokens; None of one that reads states alone."""
    try:
        found = transformer.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None
