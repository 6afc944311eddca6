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


Alike = Sequence[Text]
"""Texts that differ in their last token alone, or in where they are judged from: one forward pass has them all."""


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
    alike: dict[tuple[int, ...], list[int]] = {}  # answers of one token to one question are read off one forward pass
    for number, text in enumerate(texts):
        alike.setdefault(text.tokens[:-1], []).append(number)
    inputs = sorted(alike)
    asked = [[texts[number] for number in alike[tokens]] for tokens in inputs]
    every = list(range(len(inputs)))
    for group in _groups(asked, every) if shared else [every]:
        known = _common([asked[place] for place in group]) if shared and len(group) > 1 else 0
        cache = read(model, inputs[group[0]][:known]) if known else None
        group = sorted(group, key=lambda place: len(inputs[place]))  # least padding
        for first in range(0, len(group), batch):
            chosen = group[first : first + batch]
            for place, one in zip(chosen, _judged(model, [asked[p] for p in chosen], known, cache), strict=True):
                found |= dict(zip(alike[inputs[place]], one, strict=True))
    return [found[number] for number in range(len(texts))]


def _groups(asked: Sequence[Alike], order: list[int]) -> Iterator[list[int]]:
    """Cut inputs, in order, between neighbours that share least, until every group shares enough of its tokens."""
    pending = [order] if order else []
    while pending:
        group = pending.pop()
        shared = _common([asked[group[0]], asked[group[-1]]])
        mean = sum(len(asked[place][0].tokens) for place in group) / len(group)
        if len(group) == 1 or shared >= WORTH * mean:
            yield group
            continue
        common = [_common([asked[one], asked[other]]) for one, other in pairwise(group)]
        least = min(range(len(common)), key=lambda place: (common[place], abs(place + 1 - len(group) / 2)))
        pending += [group[least + 1 :], group[: least + 1]]


def _common(asked: Sequence[Alike]) -> int:
    """Tokens that all begin with, short of the one that the first judged token follows."""
    texts = [text for alike in asked for text in alike]
    first, last = min(text.tokens for text in texts), max(text.tokens for text in texts)
    most = min(text.start for text in texts) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def shared_beginning(contexts: Sequence[Sequence[int]]) -> int:
    """Tokens that all contexts begin with, short of the last of any; 0 where that is not worth a cache."""
    given = [tuple(context) for context in contexts]
    first, last, most = min(given), max(given), min(map(len, given)) - 1
    found = next((place for place in range(most) if first[place] != last[place]), max(most, 0))
    return found if found * len(contexts) >= WORTH * sum(map(len, contexts)) else 0


@torch.no_grad()
def read(model: nn.Module, tokens: Sequence[int]) -> Any:
    """The keys and values of one text."""
    device = next(model.parameters()).device
    outputs = model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=True, logits_to_keep=1)
    return outputs.cache if "cache" in outputs else outputs.past_key_values


def _judged(model: nn.Module, asked: Sequence[Alike], known: int, cache: Any) -> list[list[Likelihood]]:
    """The likelihoods of texts whose first `known` tokens are in `cache`.

    Padding is at the end, where nothing that is judged sees it, whatever the windows of the attention.
    """
    device = next(model.parameters()).device
    ids = [torch.tensor(alike[0].tokens[known:-1], device=device) for alike in asked]
    given: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        past = deepcopy(cache)
        past.batch_repeat_interleave(len(asked))
        given = {_cache_name(model): past, "use_cache": True}
    spans = [[range(text.start - 1 - known, len(text.tokens) - 1 - known) for text in alike] for alike in asked]
    places = sorted({place for alike in spans for span in alike for place in span})
    logits: Tensor = model(
        input_ids=nn.utils.rnn.pad_sequence(ids, batch_first=True),
        logits_to_keep=torch.tensor(places, device=device),
        **given,
    ).logits
    found = []
    for row, alike in enumerate(asked):
        ranks = [places.index(span.start) for span in spans[row]]
        first, end = min(ranks), max(rank + len(span) for rank, span in zip(ranks, spans[row], strict=True))
        rows = logits[row, first:end].float().log_softmax(-1)
        found.append([_likelihood(rows[rank - first :], text) for rank, text in zip(ranks, alike, strict=True)])
    return found


def _likelihood(rows: Tensor, text: Text) -> Likelihood:
    """From log-probabilities [judged tokens or more, vocabulary]."""
    judged = torch.tensor(text.tokens[text.start :], device=rows.device)
    rows = rows[: len(judged)]
    total = float(rows.gather(1, judged[:, None]).double().sum())
    return Likelihood(total, bool((rows.argmax(1) == judged).all()))


def _cache_name(model: nn.Module) -> str:
    """The argument that takes keys and values: transformers renames it in its fifth version."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
