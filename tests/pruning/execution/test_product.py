"""The sparse product against the dense one: outputs and gradients, over shapes, densities and dtypes."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pruning.errors import ExecutionError
from pruning.execution import sparse_execution
from pruning.execution.product import Pattern, has_csr, product

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and bool(((found - expected).abs() <= TOLERANCE[found.dtype] * scale).all())


@st.composite
def layers(draw):
    outputs, inputs, batch = (draw(st.integers(1, 12)) for _ in range(3))
    kept = draw(st.integers(0, outputs * inputs))
    seed = draw(st.integers(0, 2**31))
    return outputs, inputs, batch, kept, draw(st.booleans()), draw(st.sampled_from(list(TOLERANCE))), seed


@given(layers(), st.integers(0, 12), st.integers(1, 5), st.booleans(), st.integers(0, 12))
def test_outputs_and_gradients_are_those_of_the_masked_dense_layer(layer, one_block, columns, features_first, few):
    outputs, inputs, batch, kept, biased, dtype, seed = layer
    g = torch.Generator().manual_seed(seed)
    places = torch.randperm(outputs * inputs, generator=g)[:kept]
    mask = torch.zeros(outputs * inputs, dtype=torch.bool).index_fill(0, places, True).view(outputs, inputs)
    weight, x, above = (
        torch.randn(shape, generator=g, dtype=dtype) for shape in ((outputs, inputs), (batch, inputs), (batch, outputs))
    )
    bias = torch.randn(outputs, generator=g, dtype=dtype) if biased else None

    dense = [t.clone().requires_grad_() if t is not None else None for t in (x, weight * mask, bias)]
    F.linear(*dense).backward(above)
    sparse = [t.clone().requires_grad_() if t is not None else None for t in (x, weight[mask], bias)]
    with patch.multiple("pruning.execution.product", _ONE_BLOCK=one_block, _COLUMNS=columns):
        found = product(*sparse, Pattern.of(mask, few), features_first)
        found.backward(above)
    assert found.is_contiguous() or features_first
    assert close(found.detach(), F.linear(x, weight * mask, bias))
    assert close(sparse[0].grad, dense[0].grad)
    assert close(sparse[1].grad, dense[1].grad[mask])
    assert bias is None or close(sparse[2].grad, dense[2].grad)


@given(layers(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 5))
def test_images_are_multiplied_at_every_position(layer, images, columns, few):
    outputs, inputs, positions, kept, biased, dtype, seed = layer
    g = torch.Generator().manual_seed(seed)
    mask = torch.zeros(outputs * inputs, dtype=torch.bool).view(outputs, inputs)
    mask.view(-1)[torch.randperm(outputs * inputs, generator=g)[:kept]] = True
    weight = torch.randn(outputs, inputs, generator=g, dtype=dtype) * mask
    x = torch.randn(images, inputs, positions, generator=g, dtype=dtype)
    above = torch.randn(images, outputs, positions, generator=g, dtype=dtype)
    bias = torch.randn(outputs, generator=g, dtype=dtype) if biased else None

    dense = [t.clone().requires_grad_() if t is not None else None for t in (x, weight[:, :, None], bias)]
    F.conv1d(*dense).backward(above)
    sparse = [t.clone().requires_grad_() if t is not None else None for t in (x, weight[mask], bias)]
    with patch("pruning.execution.product._COLUMNS", columns):
        found = product(*sparse, Pattern.of(mask, few))
        found.backward(above)
    assert close(found.detach(), F.conv1d(x, weight[:, :, None], bias))
    assert close(sparse[0].grad, dense[0].grad)
    assert close(sparse[1].grad, dense[1].grad[:, :, 0][mask])
    assert bias is None or close(sparse[2].grad, dense[2].grad)


@given(layers(), st.integers(0, 12))
def test_a_pattern_holds_both_orders_of_the_same_places(layer, few):
    outputs, inputs, _, kept, *_, seed = layer
    g = torch.Generator().manual_seed(seed)
    places = torch.randperm(outputs * inputs, generator=g)[:kept]
    mask = torch.zeros(outputs * inputs, dtype=torch.bool).index_fill(0, places, True).view(outputs, inputs)
    pattern = Pattern.of(mask, few)
    values = torch.arange(1.0, kept + 1)
    dense = torch.zeros(outputs, inputs).masked_scatter(mask, values)
    assert torch.equal(pattern.times(values, torch.eye(inputs)), dense)
    assert pattern.nbytes == (4 if few else 2) * kept + 4 * (outputs + 1)
    assert torch.equal(pattern.transposed_times(values, torch.eye(outputs)), dense.t())
    assert torch.equal(pattern.flat(), mask.flatten().nonzero().flatten())
    assert pattern.nbytes == (10 if few else 8) * kept + 4 * (outputs + inputs + 2)


@pytest.mark.parametrize("side", [2**15, 2**15 + 1])
@pytest.mark.parametrize("turned", [False, True])
def test_sides_around_the_limit_of_16_bits(side, turned):
    mask = torch.zeros(side, 2, dtype=torch.bool)
    mask[[0, side - 1, side // 2], [0, 1, 0]] = True
    mask = mask.t().contiguous() if turned else mask
    weight = torch.randn(mask.shape) * mask
    x = torch.randn(3, mask.shape[1], requires_grad=True)
    values = weight[mask].requires_grad_()
    found = product(x, values, None, Pattern.of(mask))
    above = torch.randn(found.shape)
    found.backward(above)
    assert close(found.detach(), x.detach() @ weight.t())
    assert close(x.grad, above @ weight)
    assert close(values.grad, (above.t() @ x.detach())[mask])


@pytest.mark.parametrize("few", [0, 3])
def test_infinite_values_reach_only_their_own_outputs(few):
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([1.0, float("inf"), 2.0], requires_grad=True)
    found = product(torch.ones(3, 2), values, None, Pattern.of(mask, few))
    assert found.tolist() == [[1.0, float("inf")]] * 3
    found[:, 0].sum().backward()
    assert values.grad.tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize("columns", [1, 2, 5, 6, 7, 8, 9])
def test_blocks_come_to_the_kernels_as_these_are_fast(columns):
    """Few columns to MKL's, others to the bags, with strides of 1; of 2 to 7 columns zeros are added to be sampled."""
    mask = torch.rand(6, 4) < 0.5
    values, x = torch.randn(int(mask.sum()), requires_grad=True), torch.randn(columns, 4, requires_grad=True)
    seen = {"bags": [], "sampled": []}

    def bags(features, *others, bag=torch.embedding_bag):
        seen["bags"].append((features.shape[1], features.stride()))
        return bag(features, *others)

    def sampled(places, left, right, sample=torch.sparse.sampled_addmm, **options):
        seen["sampled"].append((left.shape[1], right.shape[0]))
        return sample(places, left, right, **options)

    with patch("torch.embedding_bag", bags), patch("torch.sparse.sampled_addmm", sampled):
        product(x, values, None, Pattern.of(mask, few=5)).sum().backward()
    few = columns <= 5 and has_csr()
    assert seen["bags"] == ([] if few else [(columns, (columns, 1))] * 2)
    assert seen["sampled"] == [(8 if 1 < columns < 8 else columns,) * 2]


def test_a_single_example_comes_to_the_bags_with_strides_of_1():
    """Torch calls any stride of one column contiguous, but has no fast kernel for others."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    with patch("torch.embedding_bag", wraps=torch.embedding_bag) as bag:
        product(torch.randn(1, 4), torch.randn(24), None, Pattern.of(mask))
    assert bag.call_args.args[0].stride() == (1, 1)


def test_nothing_is_copied_between_layers():
    """An output's layout is the next layer's input's: [features, batch], contiguous."""
    mask = torch.eye(4, dtype=torch.bool)
    hidden = torch.relu(product(torch.randn(3, 4), torch.ones(4), None, Pattern.of(mask)))
    assert hidden.t().is_contiguous()


class Critic(nn.Module):
    """Whose last layer has a gradient that comes from no graph, so that torch itself would not object."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("layers", [["first.weight"], ["last.weight"], ["first.weight", "last.weight"]])
@pytest.mark.parametrize("rows", [3, 600])
def test_gradients_of_gradients_are_refused(layers, rows):
    model = Critic()
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in layers}
    sparse_execution(model, masks, row_major=False)
    x = torch.randn(rows, 4, requires_grad=True)
    with pytest.raises(ExecutionError, match="second derivatives"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
