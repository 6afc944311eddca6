"""Log-likelihoods of texts by a language model that reads what they begin with in common once.

Prompts of few examples share these, which are most of their tokens. Texts are sorted and cut into groups that share
much; the keys and values of a shared beginning are computed once, and repeated for every text of its group.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

WORTH = 0.25
"""Share of the tokens of a group that must be shared for it to stay together."""


@dataclass(frozen=True)
class Text:
    """Tokens, of which those from `start` on (1 at least) are judged, and the others are their context."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Likelihood:
    """Of the judged tokens: the sum of their log-probabilities, and whether each was the most probable."""

    total: float
    greedy: bool


@torch.no_grad()
def likelihoods(model: nn.Module, texts: Sequence[Text], batch: int = 32, shared: bool = True) -> list[Likelihood]:
    """The likelihood of every text, in their order.

    Args:
        model: a causal one of transformers, in eval mode, which gives `past_key_values`.
        texts: tokens, no more than the model has positions for.
        batch: texts at a time.
        shared: whether common beginnings are read once; the numbers are the same but for rounding.
    """
    found: dict[int, Likelihood] = {}
    order = sorted(range(len(texts)), key=lambda number: texts[number].tokens)
    for group in _groups(texts, order) if shared else [order]:
        known = _common([texts[number] for number in group]) if shared and len(group) > 1 else 0
        cache = _read(model, texts[group[0]].tokens[:known]) if known else None
        group = sorted(group, key=lambda number: len(texts[number].tokens))  # least padding
        for place in range(0, len(group), batch):
            chosen = group[place : place + batch]
            rests = [texts[number] for number in chosen]
            found |= dict(zip(chosen, _judged(model, rests, known, cache), strict=True))
    return [found[number] for number in range(len(texts))]


def _groups(texts: Sequence[Text], order: list[int]) -> Iterator[list[int]]:
    """Cut texts, in order, between neighbours that share least, until every group shares enough of its tokens."""
    pending = [order] if order else []
    while pending:
        group = pending.pop()
        shared = _common([texts[group[0]], texts[group[-1]]])
        mean = sum(len(texts[number].tokens) for number in group) / len(group)
        if len(group) == 1 or shared >= WORTH * mean:
            yield group
            continue
        common = [_common([texts[one], texts[other]]) for one, other in pairwise(group)]
        least = min(range(len(common)), key=lambda place: (common[place], abs(place + 1 - len(group) / 2)))
        pending += [group[least + 1 :], group[: least + 1]]


def _common(texts: Sequence[Text]) -> int:
    """Tokens that all begin with, short of the one that the first judged token follows."""
    first, last = min(text.tokens for text in texts), max(text.tokens for text in texts)
    most = min(text.start for text in texts) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def _read(model: nn.Module, tokens: Sequence[int]) -> Any:
    """The keys and values of one text."""
    device = next(model.parameters()).device
    outputs = model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=True, logits_to_keep=1)
    return outputs.cache if "cache" in outputs else outputs.past_key_values


def _judged(model: nn.Module, texts: Sequence[Text], known: int, cache: Any) -> list[Likelihood]:
    """The likelihoods of texts whose first `known` tokens are in `cache`.

    Padding is at the end, where nothing that is judged sees it, whatever the windows of the attention.
    """
    device = next(model.parameters()).device
    rests = [torch.tensor(text.tokens[known:-1], device=device) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rests, batch_first=True)
    given: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        past = deepcopy(cache)
        past.batch_repeat_interleave(len(texts))
        given = {_cache_name(model): past, "use_cache": True}
    places = sorted({place for text in texts for place in range(text.start - 1 - known, len(text.tokens) - 1 - known)})
    logits: Tensor = model(input_ids=ids, logits_to_keep=torch.tensor(places, device=device), **given).logits
    found = []
    for row, text in enumerate(texts):
        first = places.index(text.start - 1 - known)
        judged = torch.tensor(text.tokens[text.start :], device=device)
        rows = logits[row, first : first + len(judged)].float().log_softmax(-1)
        total = float(rows.gather(1, judged[:, None]).double().sum())
        found.append(Likelihood(total, bool((rows.argmax(1) == judged).all())))
    return found


def _cache_name(model: nn.Module) -> str:
    """The argument that takes keys and values: transformers renames it in its fifth version."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
