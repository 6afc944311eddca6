"""Tiny models of nine families of transformers, what can be removed of each, and whether transformers loads the rest.

python -m tests.pruning.structure.families     # the table, measured
"""

import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from pruning import Masks
from pruning.errors import StructureError
from pruning.structure import Structure, find_blocks, remove, trace
from pruning.structure.choosing.channels import unit_masks
from pruning.structure.coupling.cost_terms import Kept
from pruning.structure.coupling.families import Family

WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTHS = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**WORDS, **WIDTHS, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]

_T = transformers
FAMILIES: dict[str, Any] = {
    "GPT-2": lambda: _T.GPT2LMHeadModel(_T.GPT2Config(**WORDS, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
    "Llama": lambda: _T.LlamaForCausalLM(_T.LlamaConfig(**GROUPED)),
    "Gemma 3": lambda: _T.Gemma3ForCausalLM(
        _T.Gemma3TextConfig(**GROUPED, head_dim=6, sliding_window=4, layer_types=KINDS)
    ),
    "OPT": lambda: _T.OPTForCausalLM(
        _T.OPTConfig(
            **WORDS,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    ),
    "Mistral": lambda: _T.MistralForCausalLM(_T.MistralConfig(**GROUPED, sliding_window=8)),
    "Qwen 3": lambda: _T.Qwen3ForCausalLM(_T.Qwen3Config(**GROUPED, head_dim=6)),
    "BERT": lambda: _T.BertForMaskedLM(_T.BertConfig(vocab_size=50, **WIDTHS, max_position_embeddings=64)),
    "T5": lambda: _T.T5ForConditionalGeneration(
        _T.T5Config(
            vocab_size=50,
            d_model=32,
            d_kv=6,
            d_ff=40,
            num_layers=3,
            num_decoder_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "ViT": lambda: _T.ViTForImageClassification(
        _T.ViTConfig(**WIDTHS, image_size=16, patch_size=4, num_channels=3, num_labels=5)
    ),
}

REMOVED = ("heads", "inner width", "blocks", "hidden size", "hidden size and heads")

SAME, REFUSED, NOTHING = "same", "refused", "-"
EXPECTED: dict[str, tuple[str, ...]] = {  # in the order of REMOVED, of equal sizes; unequal ones are all refused
    "GPT-2": (REFUSED, SAME, SAME, REFUSED, SAME),
    "Llama": (SAME, SAME, SAME, SAME, SAME),
    "Gemma 3": (SAME, SAME, SAME, REFUSED, REFUSED),
    "OPT": (REFUSED, SAME, SAME, REFUSED, SAME),
    "Mistral": (SAME, SAME, SAME, SAME, SAME),
    "Qwen 3": (SAME, SAME, SAME, SAME, SAME),
    "BERT": (REFUSED, SAME, NOTHING, REFUSED, SAME),
    "T5": (SAME, SAME, REFUSED, NOTHING, NOTHING),
    "ViT": (SAME, SAME, SAME, SAME, SAME),
}


def built(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with weights large enough for different tokens, in eval mode, and inputs."""
    torch.manual_seed(seed)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.4)
    if name == "ViT":
        return model, {"pixel_values": torch.randn(2, 3, 16, 16)}
    inputs = {"input_ids": torch.randint(3, 50, (2, 7))}
    if name == "T5":
        inputs["decoder_input_ids"] = torch.randint(3, 50, (2, 5))
    return model, inputs


@dataclass(frozen=True)
class Removal:
    """A model, masks and structure of something that is to go, and whether that changes the network."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    masks: Masks
    structure: Structure
    lossy: bool

    @cached_property
    def small(self) -> nn.Module:
        return remove(self.model, self.masks, self.structure, lossy=self.lossy)


@cache
def removal(name: str, what: str, equal: bool = True) -> Removal | None:
    """Half of the heads or of the inner units, the middle block, a quarter of the hidden size; None: there is none.

    Not `equal`: only in the first layer; or besides some inner units of the first layer. What it gives is shared: copy
    what is to be changed.
    """
    model, inputs = built(name)
    lossy = "hidden" in what
    structure = trace(model, inputs, lossy=lossy)
    kept = np.ones(structure.size, bool)
    rng = np.random.default_rng(0)
    of = {kind: [f for f in structure.families if f.kind == kind] for kind in ("heads", "neurons", "channels")}
    inner = [family for family in of["neurons"] if family.size in (40, 128)]
    hidden = [family for family in structure.families if family.size == 32]
    if what in ("heads", "inner width"):
        chosen = of["heads"] if what == "heads" else inner
        for family in chosen if equal else chosen[:1]:
            _drop_(kept, family, family.size // 2, rng)
        return Removal(model, inputs, Masks(unit_masks(structure, kept)), structure, lossy)
    if lossy and not hidden:
        return None
    if lossy:
        _drop_(kept, hidden[0], 8, rng)
    if what.endswith("and heads"):  # 24 features are three heads of eight
        for family in of["heads"]:
            _drop_(kept, family, 1 if name != "Gemma 3" else 2, rng)
    if not equal:
        _drop_(kept, inner[0], 7, rng)
    masks = unit_masks(structure, kept)
    if what == "blocks":
        blocks = find_blocks(model, inputs)
        if not blocks:
            return None
        block = blocks[1]
        shapes = {key: p.shape for key, p in model.named_parameters() if key.startswith(f"{block}.")}
        masks |= {key: torch.zeros(shape, dtype=torch.bool) for key, shape in shapes.items()}
    return Removal(model, inputs, Masks(masks), structure, lossy)


def _drop_(kept: Kept, family: Family, count: int, rng: np.random.Generator) -> None:
    kept[family.first + rng.choice(family.size, count, replace=False)] = False


_GREEDY = {"repetition_penalty": 3.0, "pad_token_id": 0, "eos_token_id": None}
"""Not one word again and again."""


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def tokens(model: nn.Module, inputs: dict[str, torch.Tensor], cache: bool) -> torch.Tensor:
    """Greedy ones; longer than the windows of attention."""
    own = {"input_ids": inputs["input_ids"]}
    return model.generate(**own, do_sample=False, max_new_tokens=12, use_cache=cache, **_GREEDY)


def generates(model: nn.Module) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def outcome(case: Removal | None, folder: Path) -> str:
    """What transformers makes of it: "same" outputs and tokens, "refused", or what else."""
    if case is None:
        return NOTHING
    small = case.small
    try:
        small.save_pretrained(folder)
    except StructureError:
        return REFUSED
    again, report = type(small).from_pretrained(folder, output_loading_info=True)
    if any(report.values()) or not torch.equal(logits(small, case.inputs), logits(again.eval(), case.inputs)):
        return "OTHER VALUES"
    if generates(small):
        expected = tokens(small, case.inputs, cache=True)
        others = [tokens(model, case.inputs, cache) for model in (small, again) for cache in (True, False)]
        if not all(torch.equal(expected, other) for other in others):
            return "OTHER TOKENS"
    return SAME


def table() -> str:
    """Markdown: family × what is removed, equal / unequal over the layers."""
    lines = ["| family | " + " | ".join(REMOVED) + " |", "| :-- |" + " :-- |" * len(REMOVED)]
    for name in FAMILIES:
        cells = []
        for what in REMOVED:
            found = []
            for equal in (True, False):
                with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                    found.append(outcome(removal(name, what, equal), Path(folder)))
            cells.append(" / ".join(found) if len(set(found)) > 1 else found[0])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(table())
