"""Networks in memory for lm-evaluation-harness, which reads beginnings that requests share once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments.evaluation.likelihoods import Text, likelihoods, read, shared_beginning
from experiments.runtime.extras import missing
from pruning.errors import ConfigurationError


@cache
def harness_model() -> Any:
    """The class of networks that lm-eval takes as models.

    Raises `ConfigurationError` where lm-eval is missing.
    """
    try:
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415  # optional, and slow to import
    except ImportError as error:
        raise ConfigurationError(missing("lm-eval")) from error

    class HarnessModel(HFLM):  # type: ignore[misc]  # lm-eval has no types, so that its class is Any
        """A causal language model, whole, pruned or with an adaptation, as lm-eval takes models.

        Numbers are those of lm-eval's own class for transformers, but for rounding; what is tokenised, truncated and
        cut off is its work.
        """

        def __init__(self, model: nn.Module, tokenizer: Any, batch: int = 16, shared: bool = True):
            """Wrap `model`, in eval mode, with its `tokenizer`, of transformers.

            Args:
                batch: texts at a time.
                shared: whether common beginnings are read once.
            """
            quiet = logging.getLogger("lm_eval.models.huggingface")
            before = quiet.level
            quiet.setLevel(logging.ERROR)  # it warns of every model that is no name
            try:
                super().__init__(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch, backend="causal")
            finally:
                quiet.setLevel(before)
            self.shared = shared

        def _loglikelihood_tokens(
            self,
            requests: Sequence[tuple[Any, list[int], list[int]]],
            disable_tqdm: bool = False,
            override_bs: Any = None,
        ) -> list[tuple[float, bool]]:
            texts = []
            for _, context, continuation in requests:
                tokens = [*context, *continuation][-(self.max_length + 1) :]
                texts.append(Text(tuple(tokens), len(tokens) - len(continuation)))
            found = likelihoods(self.model, texts, self.batch_size, self.shared)
            return [(one.total, one.greedy) for one in found]

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
            """As the harness has it; `context` is padded at its beginning, which texts that share one must not be."""
            mask = options.pop("attention_mask")
            rows = [ids[kept.bool()] for ids, kept in zip(context, mask, strict=True)]
            most, wide = max_length - context.shape[1], context.shape[1]
            known = shared_beginning([row.tolist() for row in rows]) if self.shared and len(rows) > 1 else 0
            cache = read(self.model, rows[0][:known].tolist()) if known else None
            found = torch.full((len(rows), max_length), self.tokenizer.pad_token_id, device=context.device)
            for length in sorted({len(row) for row in rows}):
                chosen = [place for place, row in enumerate(rows) if len(row) == length]
                ids = torch.stack([rows[place] for place in chosen])
                if cache is not None:
                    options["past_key_values"] = copy.deepcopy(cache)
                    options["past_key_values"].batch_repeat_interleave(len(chosen))
                whole = torch.ones_like(ids)
                made = super()._model_generate(ids, length + most, stop, attention_mask=whole, **options)
                new = made[:, length:]
                found[chosen, wide : wide + new.shape[1]] = new
            return found

    return HarnessModel
