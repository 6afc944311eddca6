"""Block influence by its definition, position by position, and what Depth makes of it."""

import numpy as np
import pytest
import torch
from torch import nn

from pruning import Evidence, prunable, prune
from pruning.errors import ScoreError
from pruning.sequential import blocks
from pruning.structure import Depth, Skip, block_influence, find_blocks, remove, trace, verify
from tests.pruning.structure.blocks import BLOCKS, deep

BATCHES = [(torch.randn(n, 6, 5), torch.zeros(n, dtype=torch.long)) for n in (2, 5, 1)]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def evidence_of(model, batches=BATCHES):
    return Evidence(model, prunable(model), batches, loss)


def by_definition(model, names, batches):
    """Equation 1 in NumPy: one cosine at a time."""
    seen = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, y, name=name: seen[name].append((kwargs["hidden"], y)), with_kwargs=True
        )
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    found = {}
    for name in names:
        cosines = [
            float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
            for x, y in seen[name]
            for a, b in zip(x.flatten(0, -2).double().numpy(), y.flatten(0, -2).double().numpy(), strict=True)
        ]
        found[name] = 1 - sum(cosines) / len(cosines)
    return found


def test_scores_are_the_paper_s_of_all_positions_of_all_batches():
    model, _ = deep()
    scores = block_influence(evidence_of(model), BLOCKS)
    assert not any(module._forward_hooks for module in model.modules())
    expected = by_definition(deep()[0], BLOCKS, BATCHES)
    assert set(scores) == {name for name in prunable(model) if name.startswith("blocks.")}
    for name, score in scores.items():
        assert score.unique().tolist() == pytest.approx([expected[name[:8]]], abs=1e-12)
        assert score.shape == model.get_parameter(name).shape
    assert len(set(expected.values())) == 4


@pytest.mark.parametrize("density", [0.75, 0.5])
def test_the_blocks_of_least_influence_go(density):
    model, inputs = deep()
    with torch.no_grad():  # in the order of the names they would be others
        for i, factor in enumerate((0.8, 0.1, 2.0, 0.01)):
            block = model.blocks[i]
            for parameter in (block.down.weight, block.down.bias, *block.attention.out_proj.parameters()):
                parameter.mul_(factor)
    structure = trace(model, inputs)
    scores = block_influence(evidence_of(model), find_blocks(model, inputs))
    small = remove(model, prune(scores, density, Depth(model, BLOCKS)), structure)
    gone = {name for name in BLOCKS if isinstance(small.get_submodule(name), Skip)}
    assert gone == ({"blocks.3"} if density == 0.75 else {"blocks.1", "blocks.3"})
    masks = prune(scores, density, Depth(model, BLOCKS))
    assert verify(model, masks, small, inputs) <= 1e-5


def test_a_block_that_does_nothing_has_no_influence_and_one_that_turns_round_has_two():
    class Turn(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.weight, self.sign = nn.Linear(4, 4), sign

        def forward(self, x):
            return self.sign * x + 0 * self.weight(x)

    model = nn.Sequential(nn.Linear(5, 4), Turn(1.0), Turn(-1.0))
    x = torch.randn(3, 5)
    evidence = Evidence(model, prunable(model), [x], lambda m, batch: m(batch).sum())
    scores = block_influence(evidence, ("1", "2"))
    assert scores["1.weight.weight"].mean() == pytest.approx(0.0, abs=1e-12)
    assert scores["2.weight.weight"].mean() == pytest.approx(2.0, abs=1e-12)
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    scores = block_influence(evidence, ("1",))
    assert not scores["1.weight.weight"].any()  # zeros are given back as they are


def test_channels_of_images_are_the_features_of_a_position():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    torch.manual_seed(0)
    model, x = nn.Sequential(Residual()), torch.randn(2, 4, 5, 5)
    evidence = Evidence(model, prunable(model), [x], lambda m, batch: m(batch).sum())
    found = float(block_influence(evidence, ("0",), dim=1)["0.conv.weight"].mean())
    pairs = zip(x.permute(0, 2, 3, 1).reshape(-1, 4), model(x).permute(0, 2, 3, 1).reshape(-1, 4), strict=True)
    assert found == pytest.approx(float(1 - torch.stack([a @ b / (a.norm() * b.norm()) for a, b in pairs]).mean()))


def test_layers_of_a_language_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=30, **sizes)).eval()
    ids = torch.randint(30, (2, 9))
    evidence = Evidence(model, prunable(model), [{"input_ids": ids, "labels": ids}], lambda m, b: m(**b).loss)
    names = blocks(model)
    scores = block_influence(evidence, names)
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    for i in range(2):  # transformers gives the last one after the norm
        expected = 1 - nn.functional.cosine_similarity(states[i], states[i + 1], dim=-1).mean()
        assert float(scores[f"{names[i]}.mlp.up_proj.weight"].mean()) == pytest.approx(float(expected), abs=1e-6)
    masks = prune(scores, 0.67, Depth(model, names))
    small = remove(model, masks, trace(model, {"input_ids": ids}))
    assert small.config.num_hidden_layers == len(small.model.layers) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [(("blocks.9",), "is no module"), (("inner",), "does not give back"), (("blocks.0.norm",), "no prunable weight")],
)
def test_what_has_no_influence_is_refused_by_name(names, said):
    with pytest.raises(ScoreError, match=f"{names[0]}: .*{said}"):
        block_influence(evidence_of(deep()[0]), names)


def test_without_data_it_is_refused():
    model, _ = deep()
    with pytest.raises(ScoreError, match="give batches and a loss"):
        block_influence(Evidence(model, prunable(model)), BLOCKS)
    with pytest.raises(ScoreError, match=r"blocks.0: did not run"):
        block_influence(evidence_of(model, []), BLOCKS)


def test_blocks_that_write_into_their_input_have_the_influence_that_others_have():
    class Writing(nn.Module):
        def __init__(self, inner, inplace):
            super().__init__()
            self.inner, self.inplace = inner, inplace

        def forward(self, x):
            change = self.inner(x)
            return x.add_(change) if self.inplace else x + change

    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(Writing(nn.Linear(5, 5), inplace) for _ in range(3)), nn.Flatten())
        evidence = Evidence(model, prunable(model), [torch.randn(4, 6, 5)], lambda m, x: m(x.clone()).mean())
        found.append([float(score.unique()) for score in block_influence(evidence, ("0", "1", "2")).values()])
    assert found[0] == pytest.approx(found[1])
    assert min(found[0]) > 0.01
