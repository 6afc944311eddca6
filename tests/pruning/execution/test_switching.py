"""A network in its two forms: the same training, the same names, and back again without a bit lost."""

import copy
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import ExecutionError, MaskError
from pruning.execution import candidates, dense_execution, sparse_execution, sparse_layers
from pruning.execution.modules import SparseLinear

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def mlp(seed=0, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


def pointwise(seed=0, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.Flatten(),
        nn.Linear(45, 4),
    ).to(dtype)


MODELS = {"mlp": (mlp, (10,)), "pointwise": (pointwise, (3, 6, 6))}


def masked(model: nn.Module, density: float) -> Masks:
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), density)
    masks.apply_(model)
    return masks


def batches(shape, count, seed=1, size=8):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (
            torch.randn(size, *shape, generator=g, dtype=torch.float64),
            torch.randint(4, (size,), generator=g),
        )


def train(model, optimizer, data, clip=None, accumulate=1):
    for number, (x, y) in enumerate(data, start=1):
        (F.cross_entropy(model(x), y) / accumulate).backward()
        if number % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()


def rest(masks: Masks, names) -> Masks | None:
    left = {name: mask for name, mask in masks.items() if name not in names}
    return Masks(left) if left else None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("clip", "accumulate"), [(None, 1), (0.5, 2)])
def test_200_steps_reach_the_same_weights(name, architecture, clip, accumulate):
    make, shape = MODELS[architecture]
    dense = make()
    masks = masked(dense, 0.2)
    model = copy.deepcopy(dense)
    optimizer = OPTIMIZERS[name](dense.parameters())
    with masks.attach(dense, optimizer):
        train(dense, optimizer, batches(shape, 200), clip, accumulate)

    names = sparse_execution(model, masks)
    other = OPTIMIZERS[name](model.parameters())
    held = rest(masks, names)
    attached = None if held is None else held.attach(model, other)
    train(model, other, batches(shape, 200), clip, accumulate)
    if attached is not None:
        attached.detach()
    dense_execution(model, other)
    assert masks.agree(model)
    for key, value in dense.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=1e-6, atol=1e-8), key


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.002, 1.0), st.sampled_from(sorted(MODELS)))
def test_gradients_agree_at_any_density(seed, density, architecture):
    make, shape = MODELS[architecture]
    dense = make(seed, torch.float32)
    parameters = prunable(dense)
    total = sum(p.numel() for p in parameters.values())
    masks = masked(dense, max(density, 1 / total))
    model = copy.deepcopy(dense)
    sparse_execution(model, masks)
    x, y = next(batches(shape, 1, seed))
    for network in (dense, model):
        F.cross_entropy(network(x.float()), y).backward()
    dense_execution(model)
    for (name, one), (_, two) in zip(dense.named_parameters(), model.named_parameters(), strict=True):
        expected = one.grad if name not in masks else one.grad * masks[name]
        found = two.grad if name not in masks else two.grad * masks[name]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max()))), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_and_back_loses_no_bit(name):
    model = mlp()
    masks = masked(model, 0.3)
    optimizer = OPTIMIZERS[name](model.parameters())
    with masks.attach(model, optimizer):
        train(model, optimizer, batches((10,), 5))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    parameters = list(model.parameters())
    names = sparse_execution(model, masks, optimizer)
    assert set(names) == set(masks)
    sizes = {value.numel() for s in optimizer.state.values() for value in s.values() if value.dim()}
    assert sizes <= {int(mask.sum()) for mask in masks.values()} | {16, 12, 4}
    assert list(dense_execution(model, optimizer)) == list(names)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[key], value)
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for key, before in state["state"].items():
        for part, value in before.items():
            found = after["state"][key][part]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_changing_forms_in_the_middle_of_a_training_changes_nothing():
    one, other = mlp(), mlp()
    masks = masked(one, 0.3)
    masks.apply_(other)
    first, second = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (one, other))
    data = list(batches((10,), 40))
    with masks.attach(one, first):
        train(one, first, data)
    for begin in range(0, 40, 10):
        if begin % 20:
            with masks.attach(other, second):
                train(other, second, data[begin : begin + 10])
        else:
            sparse_execution(other, masks, second)
            train(other, second, data[begin : begin + 10])
            dense_execution(other, second)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_names_and_shapes_stay(tmp_path):
    model = mlp()
    masks = masked(model, 0.2)
    before = copy.deepcopy(model.state_dict())
    sparse_execution(model, masks)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [type(m) for m in model if isinstance(m, nn.Linear)] == [SparseLinear] * 3

    other = mlp(7)
    masks.apply_(other)
    model.load_state_dict(other.state_dict())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in other.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict({k: v for k, v in before.items() if k != "0.weight"})
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        model.load_state_dict(before | {"0.weight": torch.ones(2, 2)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.values"):
        model.load_state_dict(before | {"0.values": torch.ones(2)})


def test_copies_and_pickles_are_networks_of_their_own():
    model = mlp()
    masks = masked(model, 0.2)
    sparse_execution(model, masks)
    x = next(batches((10,), 1))[0]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), model(x))
        with torch.no_grad():
            other[0].values.mul_(2)
        assert not torch.equal(other(x), model(x))
        dense_execution(other)
        assert masks.agree(other)
        assert torch.equal(other[0].weight, 2 * model[0].weight)


def test_averages_of_weights():
    model, dense = mlp(), mlp()
    masks = masked(model, 0.2)
    masks.apply_(dense)
    sparse_execution(model, masks)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, dense)]
    averages = [torch.optim.swa_utils.AveragedModel(m) for m in (model, dense)]
    with masks.attach(dense, optimizers[1]):
        for network, optimizer, average in zip((model, dense), optimizers, averages, strict=True):
            for batch in batches((10,), 10):
                train(network, optimizer, [batch])
                average.update_parameters(network)
    dense_execution(averages[0])
    for a, b in zip(averages[0].module.parameters(), averages[1].module.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


class Tied(nn.Module):
    def __init__(self, turned=False):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        if turned:
            self.two.weight = nn.Parameter(self.one.weight.data.t())
        else:
            self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def test_tied_weights_are_one_vector():
    torch.manual_seed(0)
    model = Tied()
    masks = masked(model, 0.4)
    dense = copy.deepcopy(model)
    assert sparse_execution(model, masks) == ("one.weight",)
    assert model.one.values is model.two.values
    x = torch.randn(5, 6)
    for network in (model, dense):
        network(x).square().sum().backward()
    dense_execution(model)
    assert model.one.weight is model.two.weight
    expected = dense.one.weight.grad * masks["one.weight"]
    assert torch.allclose(model.one.weight.grad, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_run_sparsely_stays():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "own": Own(4, 4),
            "bf16": nn.Linear(4, 4, dtype=torch.bfloat16),
            "wide": nn.Conv2d(4, 4, 3),
            "grouped": nn.Conv2d(4, 4, 1, groups=2),
            "padded": nn.Conv2d(4, 4, 1, padding=1),
            "pointwise": nn.Conv2d(4, 4, 1),
            "attention": nn.MultiheadAttention(4, 2),
            "turned": Tied(turned=True),
        }
    )
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    assert candidates(model, masks) == ("linear.weight", "pointwise.weight")
    with pytest.raises(ExecutionError, match=r"own\.weight: cannot run sparsely"):
        sparse_execution(model, masks, layers=["own.weight"])
    assert sparse_layers(model) == {}
    with pytest.raises(MaskError, match="missing: the model has no such parameter"):
        sparse_execution(model, {"missing": torch.ones(2, dtype=torch.bool)})


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_an_optimizer_that_mixes_entries_is_refused_and_nothing_changes(make):
    model = mlp()
    masks = masked(model, 0.2)
    optimizer = make(list(model.parameters()))
    with pytest.raises(ExecutionError, match="is not known to treat every weight by itself"):
        sparse_execution(model, masks, optimizer)
    assert sparse_layers(model) == {}


def test_several_groups_and_frozen_weights():
    model, dense = mlp(), mlp()
    masks = masked(model, 0.3)
    masks.apply_(dense)

    def optimizer_of(network):
        network[2].weight.requires_grad_(False)
        return torch.optim.SGD(
            [
                {"params": network[0].parameters(), "lr": 0.1, "momentum": 0.9},
                {"params": [*network[4].parameters(), network[2].bias], "lr": 0.01, "weight_decay": 0.1},
            ]
        )

    first, second = optimizer_of(dense), optimizer_of(model)
    with masks.attach(dense, first):
        train(dense, first, batches((10,), 20))
    sparse_execution(model, masks, second)
    assert not model[2].values.requires_grad
    train(model, second, batches((10,), 20))
    dense_execution(model, second)
    for a, b in zip(dense.parameters(), model.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(10,), (1, 10), (3, 10), (2, 3, 10), (2, 1, 3, 10), (0, 10), (2, 0, 10)])
def test_inputs_of_any_rank(shape):
    layer = nn.Linear(10, 7, dtype=torch.float64)
    mask = torch.rand(7, 10) < 0.3
    with torch.no_grad():
        layer.weight.mul_(mask)
    dense = copy.deepcopy(layer)
    sparse_execution(layer, {"weight": mask})
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(layer(x), dense(x), rtol=1e-12)
    assert layer(x).shape == dense(x).shape


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "batched"), list(itertools.product([1, 2, (1, 3)], [True, False])))
def test_pointwise_convolutions(stride, batched, layout):
    layer = nn.Conv2d(5, 4, 1, stride=stride, dtype=torch.float64)
    mask = torch.rand(4, 5, 1, 1) < 0.5
    with torch.no_grad():
        layer.weight.mul_(mask)
    dense = copy.deepcopy(layer)
    sparse_execution(layer, {"weight": mask})
    x = torch.randn(*([3] if batched else []), 5, 7, 6, dtype=torch.float64)
    if batched:
        x = x.to(memory_format=layout)
    assert torch.allclose(layer(x), dense(x), rtol=1e-12)
    assert layer(x).shape == dense(x).shape
    contiguous = [
        output.is_contiguous(memory_format=layout if batched else torch.contiguous_format)
        for output in (layer(x), dense(x))
    ]
    assert contiguous == [True, True]


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_inputs_that_do_not_fit_are_refused_as_by_the_dense_layer(layer):
    """A sparse product that is given too many features would not look at the last ones."""
    dense = copy.deepcopy(layer)
    sparse_execution(layer, {"weight": torch.ones_like(layer.weight, dtype=torch.bool)})
    for shape in [(), (4,), (5, 4), (5, 2), (5, 4, 1, 1), (4, 1, 1), (1, 1, 3, 1, 1)]:
        with pytest.raises(Exception) as expected:  # noqa: PT011  # whatever torch raises
            dense(torch.randn(shape))
        with pytest.raises(expected.type):
            layer(torch.randn(shape))


def test_an_emptied_layer_gives_its_bias():
    layer = nn.Linear(3, 2)
    sparse_execution(layer, {"weight": torch.zeros(2, 3, dtype=torch.bool)})
    assert torch.equal(layer(torch.randn(4, 3)), layer.bias.expand(4, 2))
    layer(torch.randn(4, 3)).sum().backward()
    assert layer.bias.grad.tolist() == [4.0, 4.0]
    dense_execution(layer)
    assert not layer.weight.any()


def test_code_that_reads_weights_past_the_module_stays_right():
    """In eval mode torch's encoder layer multiplies by the weights of its linear modules itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    masks = masked(layer, 0.3)
    dense = copy.deepcopy(layer)
    names = sparse_execution(layer, masks)
    assert names == ("linear1.weight", "linear2.weight")
    x = torch.randn(2, 5, 8)
    for mode in (True, False):
        layer.train(mode), dense.train(mode)
        torch.manual_seed(1)
        found = layer(x)
        torch.manual_seed(1)
        assert torch.allclose(found, dense(x), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(layer(x), dense(x), rtol=1e-4, atol=1e-5)


def test_autocast_computes_as_the_masked_network_does():
    model = mlp(dtype=torch.float32)
    masks = masked(model, 0.3)
    dense = copy.deepcopy(model)
    sparse_execution(model, masks)
    x = torch.randn(5, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), dense(x))
        F.cross_entropy(model(x).float(), torch.zeros(5, dtype=torch.long)).backward()
        F.cross_entropy(dense(x).float(), torch.zeros(5, dtype=torch.long)).backward()
    dense_execution(model)
    assert torch.allclose(model[0].weight.grad, dense[0].weight.grad * masks["0.weight"])


def test_hooks_stay_on_the_module():
    model = mlp()
    masks = masked(model, 0.3)
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = next(batches((10,), 1))[0]
    sparse_execution(model, masks)
    model(x)
    dense_execution(model)
    model(x)
    assert seen == [(8, 16), (8, 16)]


def test_memory_is_what_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(800, 800, bias=False), nn.ReLU(), nn.Linear(800, 800, bias=False))
    masks = masked(model, 0.02)
    optimizer = torch.optim.Adam(model.parameters())
    sparse_execution(model, masks, optimizer)
    model(torch.randn(4, 800)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    tensors = [*model.parameters(), *model.buffers(), *(m.dense_weight for m in model if hasattr(m, "dense_weight"))]
    tensors += [t for m in model if hasattr(m, "pattern") for t in vars(m.pattern).values() if hasattr(t, "nbytes")]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert sum(t.untyped_storage().nbytes() for t in tensors) <= 20 * masks.kept + 2 * 2 * 4 * 801 + 64


@pytest.mark.parametrize("row_major", [True, False])
@pytest.mark.parametrize("shape", [(8, 10), (3, 8, 10), (600, 10)])
def test_operations_in_place_on_outputs(shape, row_major):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 16), nn.ReLU(inplace=True), nn.Linear(16, 12), nn.ELU(inplace=True), nn.Linear(12, 4)
    )
    masks = masked(model, 0.3)
    dense, x = copy.deepcopy(model), torch.randn(shape)
    sparse_execution(model, masks, row_major=row_major)
    for network in (model, dense):
        network(x).square().sum().backward()
    dense_execution(model)
    for (name, a), (_, b) in zip(model.named_parameters(), dense.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad * masks.get(name, torch.ones(())), rtol=1e-4, atol=1e-4), name


class Heads(nn.Module):
    """As attention is often written, and generators: outputs are viewed in other shapes."""

    def __init__(self, noisy=False):
        super().__init__()
        self.seed, self.query, self.out, self.noisy = nn.Linear(10, 24), nn.Linear(6, 6), nn.Linear(6, 4), noisy

    def forward(self, x):
        x = self.seed(x).view(len(x), 4, 6)
        x = self.query(x).view(len(x), 4, 2, 3).transpose(1, 2).reshape(len(x), 4, 6)
        return self.out(F.dropout(x, 0.5, self.training and self.noisy)).mean(1)


@pytest.mark.parametrize("noisy", [True, False])
def test_views_and_noise_are_those_of_dense_layers(noisy):
    torch.manual_seed(0)
    model, x = Heads(noisy), torch.randn(5, 10)
    masks = masked(model, 0.3)
    dense = copy.deepcopy(model)
    sparse_execution(model, masks)
    found = []
    for network in (model, dense):
        torch.manual_seed(1)
        found.append(network(x))
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("names", [["0.weight"], ["1.weight"], ["0.weight", "1.weight"]])
def test_tied_weights_under_any_of_their_names(names):
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    model[1].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    mask = torch.rand(5, 5) < 0.5
    masks = Masks(dict.fromkeys(names, mask))
    masks.apply_(model)
    x = torch.randn(3, 5)
    expected = model(x)
    assert sparse_execution(model, masks, optimizer) == (names[0],)
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert model[0].values is model[1].values
    assert dense_execution(model, optimizer) == ("0.weight",)
    assert model[0].weight is model[1].weight


def test_a_failure_while_a_state_is_read_leaves_the_layer_whole():
    layer = nn.Linear(3, 2)
    sparse_execution(layer, {"weight": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(TypeError):
        layer._save_to_state_dict(None, "", False)
    assert set(layer._parameters) == {"values", "bias"}


def test_an_optimizer_of_another_model_is_refused():
    model, other = mlp(), mlp()
    masks = masked(model, 0.3)
    with pytest.raises(ExecutionError, match="SGD: updates no parameter of the model"):
        sparse_execution(model, masks, torch.optim.SGD(other.parameters(), lr=0.1))
    assert not sparse_layers(model)


def test_masks_of_a_sparse_network_say_what_to_do():
    model = mlp()
    masks = masked(model, 0.3)
    sparse_execution(model, masks)
    for use in (masks.agree, masks.apply_, masks.attach, lambda m: sparse_execution(m, masks)):
        with pytest.raises(MaskError, match=r"0.weight: runs sparsely: call dense_execution\(model\)"):
            use(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_after_the_switch_computes_densely(dtype):
    model = nn.Linear(6, 4)
    mask = torch.rand(4, 6) < 0.5
    sparse_execution(model, {"weight": mask})
    model.to(dtype)
    model(torch.randn(5, 6, dtype=dtype)).sum().backward()
    assert model.values.grad.dtype == dtype


def test_nested_tensors_are_computed_densely():
    layer = nn.Linear(6, 4)
    mask = torch.rand(4, 6) < 0.5
    Masks({"weight": mask}).apply_(layer)
    dense = copy.deepcopy(layer)
    sparse_execution(layer, {"weight": mask})
    x = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)])
    for a, b in zip(layer(x).unbind(), dense(x).unbind(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_of_two_masks_of_a_tied_weight_both_hold():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    masks = Masks({"0.weight": torch.rand(5, 5) < 0.6, "1.weight": torch.rand(5, 5) < 0.6})
    both = masks["0.weight"] & masks["1.weight"]
    assert masks.joined(model) == Masks({"0.weight": both})
    sparse_execution(model, masks)
    assert model[0].values.numel() == int(both.sum())
    dense_execution(model)
    assert masks.agree(model)


def test_weights_that_share_part_of_their_memory_stay_dense():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))
    model[1].weight.data = model[0].weight.data[:6]
    assert candidates(model, {"0.weight": torch.ones(8, 8, dtype=torch.bool)}) == ()
