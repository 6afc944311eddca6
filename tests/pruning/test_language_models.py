"""Language models of all kinds: every weight is scored and made up for, or refused by its name."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiments.benchmarks.language_peer import peer_wanda
from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import NofM, PerRow, Uniform
from pruning.curvature import layer_hessian
from pruning.errors import ScoreError
from pruning.recovery import compensate, compensate_bias
from pruning.sequential import blocks, sequentially
from pruning.sweep import sweep

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 1}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "gemma": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED | {"head_dim": 8}),
    "opt": ("OPTForCausalLM", "OPTConfig", SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 3}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        GROUPED | {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2, "head_dim": 8},
    ),
}
EXPERTS = {"mixtral", "qwen3_moe"}
"""Models whose experts are stacked in one tensor, which no module multiplies by."""


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, config, options = MODELS[name]
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    return made


def evidence(model: nn.Module, exclude: list[str] | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(3, 48, (2, 10), generator=generator) for _ in range(3)]
    return Evidence(model, prunable(model, exclude=exclude), batches, lambda m, b: m(b, labels=b).loss)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_and_a_head_that_is_tied_to_them_are_not_prunable(name: str) -> None:
    model = built(name)
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    parameters = evidence(model).parameters
    assert all(parameter is not embedding for parameter in parameters.values())
    assert tied == ("lm_head.weight" not in parameters)


@pytest.mark.parametrize(
    "scorer", [scorers.wanda, scorers.obs, scorers.taylor, scorers.fisher], ids=lambda s: s.__name__
)
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_scored_or_refused_by_name(name: str, scorer: Callable[[Evidence], dict[str, Tensor]]) -> None:
    case = evidence(built(name))
    if name in EXPERTS and scorer in (scorers.wanda, scorers.obs):
        with pytest.raises(
            ScoreError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: no Linear .* uses it.*: exclude it"
        ):
            scorer(case)
        case = evidence(case.model, ["*experts*"])
    scores = scorer(case)
    assert {name: score.shape for name, score in scores.items()} == {n: p.shape for n, p in case.parameters.items()}
    for allocation, density in ((PerRow(), 0.5), (NofM(2, 4), None)):
        masks = prune(scores, density, allocation=allocation)
        assert masks.density == 0.5


@pytest.mark.parametrize("remove", [compensate, sweep, compensate_bias], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_made_up_for(name: str, remove: Callable[[Evidence, Masks], object]) -> None:
    """Outputs of each layer, for the inputs that it had, are less far off than by removal alone."""
    case = evidence(built(name), ["*experts*"] if name in EXPERTS else None)
    before = {name: p.detach().double().clone() for name, p in case.parameters.items()}
    hessians = {name: q.hessian[0] for q in layer_hessian(case) for name in q.names}
    masks = prune(scorers.magnitude(case), 0.5, allocation=Uniform())
    remove(case, masks)
    assert masks.agree(case.model)
    if remove is compensate_bias:
        return
    errors = []
    for key, parameter in case.parameters.items():
        rows = case.layouts[key].rows
        deltas = (rows(after - before[key]) for after in (parameter.double(), before[key] * masks[key]))
        errors.append([float(((delta @ hessians[key]) * delta).sum()) for delta in deltas])
    assert remove is sweep or all(moved < alone for moved, alone in errors)  # a sweep moves columns to the right alone
    assert sum(moved for moved, _ in errors) < 0.95 * sum(alone for _, alone in errors)


@pytest.mark.parametrize("name", MODELS)
def test_block_by_block_with_a_sweep(name: str) -> None:
    model = built(name)
    case = evidence(model, ["*experts*", "lm_head*"] if name in EXPERTS else ["lm_head*"])
    before = copy.deepcopy(model)

    def step(block: Evidence) -> Masks:
        return sweep(block, prune(scorers.magnitude(block), 0.5, allocation=Uniform()), "block")

    masks = sequentially(model, case.batches, step, parameters=case.parameters)
    assert masks.density == 0.5
    assert masks.keys() == case.parameters.keys()
    assert len(blocks(model)) == 2
    assert masks.agree(model)
    untouched = {n: p for n, p in before.named_parameters() if n not in masks}
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in untouched.items())


@pytest.mark.parametrize(("density", "m"), [(0.5, None), (0.3, None), (0.5, 4)])
@pytest.mark.parametrize("name", ["llama", "gemma", "opt"])
def test_masks_of_wanda_are_those_of_a_plain_reading_of_the_paper(name: str, density: float, m: int | None) -> None:
    """Every place, but where two scores of a row differ by rounding alone."""
    model, peer = built(name), built(name)
    text = [torch.randint(3, 48, (4, 12), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    allocation = PerRow() if m is None else NofM(2, m)

    def step(block: Evidence) -> Masks:
        return prune(scorers.wanda(block), None if m else density, allocation=allocation)

    masks = sequentially(model, text, step, parameters=prunable(model, exclude=["lm_head*"]))
    peer_wanda(peer, text, density, m)
    theirs = dict(peer.named_parameters())
    assert all(torch.equal(mask, theirs[key] != 0) for key, mask in masks.items())
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs[key]), key
