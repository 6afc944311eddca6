"""What `trace` finds, what it says and what it refuses; wrapped models, other types, outputs of all kinds."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import Evidence, prunable, prune, scorers
from pruning.cost import cost
from pruning.errors import StructureError
from pruning.structure import Channels, remove, trace, verify
from tests.pruning.structure.masking import families, masks_of, some_kept
from tests.pruning.structure.zoo import build
from tests.pruning.structure.zoo.case import images
from tests.pruning.structure.zoo.convolutions import Residual


def test_families_are_named_by_their_layers_and_list_every_slice():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    assert families(structure) == {"stem": ("channels", 6), "conv1": ("channels", 4)}
    members = {family.name: set(family.members) for family in structure.families}
    assert members["conv1"] == {
        ("conv1.weight", 0),
        ("conv1.bias", 0),
        *((f"norm1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")),
        ("conv2.weight", 1),
    }
    assert {name for name, _ in members["stem"]} >= {
        "stem.weight",
        "norm.bias",
        "conv1.weight",
        "norm2.weight",
        "head.weight",
    }
    assert structure.shrunk("parameters")[structure.families[1].units].tolist() == [6 * 9 + 1 + 2 + 6 * 9] * 4
    assert structure.shrunk("macs")[structure.families[1].units].tolist() == [2 * 36 * 9 * (6 + 6)] * 4
    assert structure.cost("parameters") == sum(p.numel() for p in model.parameters())


class Silent(nn.Module):
    """Reads a size in a way that a smaller network does not notice, and computes something else."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.second(y) * torch.tensor([float(y.shape[1]), 1.0])[0]


def test_a_difference_is_refused_and_its_place_is_named():
    model, inputs = Silent().eval(), images(4)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    with pytest.raises(StructureError, match=r"Silent: without the removed units the outputs differ by"):
        remove(model, masks, structure)
    small = remove(model, masks, structure, verified=False)
    assert verify(model, masks, small, inputs) > 0.1


def test_a_model_that_does_not_run_is_refused_with_its_reason():
    with pytest.raises(StructureError, match=r"stem: the model does not run .* give inputs that it takes"):
        trace(Residual(), images(4, 6, 6))


def test_a_model_of_which_nothing_can_go_says_what_needs_it():
    class Mean(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(1)

    lines = str(trace(Mean(nn.Linear(4, 6)).eval(), images(4))).splitlines()
    assert "fixed by mean in the model: 0.weight[0], 0.bias[0]" in lines


class Branches(nn.Module):
    """Which layer reads depends on the length of what it gets."""

    def __init__(self):
        super().__init__()
        self.first, self.short, self.long = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return (self.short if x.shape[1] < 10 else self.long)(F.relu(self.first(x)))


def test_what_the_example_does_not_reach_is_told():
    structure = trace(Branches().eval(), images(5, 4))
    assert structure.unused == ("long.weight", "long.bias")
    assert "not used by the example inputs: long.weight, long.bias" in str(structure)


@pytest.mark.parametrize("form", ["object", "set"])
def test_outputs_are_found_in_other_containers(form):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = self.second(F.relu(self.first(x)))
            return SimpleNamespace(logits=y) if form == "object" else {y}

    assert families(trace(Wrapped(), images(4))) == {"first": ("neurons", 6)}


def test_outputs_without_tensors_are_refused():
    class Numbers(nn.Linear):
        def forward(self, x):
            return super().forward(x).tolist()

    with pytest.raises(StructureError, match="without a tensor"):
        trace(Numbers(4, 3), images(4))


def broken_models():
    kept = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    kept.lock = threading.Lock()
    yield "lock", kept, "cannot be copied"
    yield "class", nn.Linear, "not its class"
    yield "lazy", nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), "call the model once"
    yield "scripted", torch.jit.trace(nn.Linear(4, 3), torch.randn(2, 4)), "is scripted"


@pytest.mark.parametrize("case", list(broken_models()), ids=lambda case: case[0])
def test_models_that_cannot_be_traced_are_refused_in_one_line(case):
    with pytest.raises(StructureError, match=case[2]) as caught:
        trace(case[1], images(4))
    assert "\n" not in str(caught.value)


def test_a_tensor_with_a_gradient_that_a_forward_pass_left_behind_is_no_hindrance():
    class Keeping(nn.Sequential):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    model = Keeping(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model(images(4))
    structure = trace(model, images(4))
    masks = masks_of(structure, some_kept(structure, 0))
    assert remove(model, masks, structure)[0].out_features < 6


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.third(F.relu(self.second(torch.special.bessel_j0(self.first(x)))))


def test_what_an_unknown_operator_touches_is_fixed_and_told():
    structure = trace(Unknown(), images(4))
    assert families(structure) == {"second": ("neurons", 5)}
    assert "special_bessel_j0" in structure.unknown
    assert "no rule is known for this operator" in str(structure)


class Data(nn.Module):
    """Asks for values in its forward pass, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.constant = [torch.ones(6)]

    def forward(self, x):
        y = F.relu(self.first(x)) * self.constant[0][0]
        return self.second(y if float(y.sum()) > -1 else -y)


def test_models_that_need_values_are_traced_on_their_own_device():
    model, inputs = Data().eval(), images(4)
    structure = trace(model, inputs)
    assert families(structure) == {"first": ("neurons", 6)}
    masks = masks_of(structure, some_kept(structure, 0))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


class Caches(nn.Module):
    """Keeps in eval mode what it computed from weights, and drops it when it trains, as some libraries' models do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.table = nn.Linear(4, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(6))
        self.cache = {}

    def train(self, mode=True):
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return self.second(self.first(x) * self.table)
        if "table" not in self.cache:
            self.cache["table"] = self.table.detach() * 1.0
        return self.second(self.first(x) * self.cache["table"])


def test_what_modules_cache_is_neither_left_behind_nor_kept():
    model, inputs = Caches().eval(), images(4)
    trace(model, inputs)
    assert model.cache == {}
    model(inputs)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


class Auxiliary(nn.Module):
    """A head that takes part in training alone."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        return (self.head(x), self.other(x)) if self.training else self.head(x)


def test_what_only_training_uses_is_cut_too():
    model, inputs = Auxiliary().eval(), images(4)
    structure = trace(model, inputs)
    assert ("other.weight", 1) in structure.families[0].members
    small = remove(model, masks_of(structure, some_kept(structure, 0)), structure)
    assert [part.shape for part in small.train()(inputs)] == [(2, 3), (2, 3)]
    assert structure.cost("macs") == 2 * (4 * 6 + 6 * 3)  # of a forward pass as it is used


def test_a_layer_that_is_never_used_keeps_its_units():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model[0].unused = nn.Linear(5, 6)
    assert families(trace(model, images(4))) == {"0": ("neurons", 5)}


def test_wrapped_models_are_unwrapped():
    model, inputs = build("residual")
    structure = trace(model, inputs)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert families(trace(wrapped, inputs)) == families(structure)
        masks = masks_of(structure, some_kept(structure, 0))
        small = remove(wrapped, masks, structure)
        assert type(small) is type(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_weights(dtype):
    model, inputs = build("residual")
    model, inputs = model.to(dtype), inputs.to(dtype)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert verify(model, masks, small, inputs) <= 1e-5


@pytest.mark.parametrize("name", ["layer norm", "rms norm", "group norm"])
def test_lossy_removal_is_asked_for_twice_and_reported(name):
    model, inputs = build(name)
    exact, structure = trace(model, inputs), trace(model, inputs, lossy=True)
    assert structure.lossy
    assert structure.size > exact.size
    kept = np.ones(structure.size, bool)
    kept[[family.first for family in structure.families]] = False
    masks = masks_of(structure, kept)
    with pytest.raises(StructureError, match="lossy=True"):
        remove(model, masks, structure)
    small = remove(model, masks, structure, lossy=True)
    assert 1e-5 < verify(model, masks, small, inputs) < 10
    assert small(inputs).shape == model(inputs).shape


def test_the_table_tells_what_a_family_costs():
    model, inputs = build("residual")
    lines = str(trace(model, inputs)).splitlines()
    assert lines[0].split() == ["family", "kind", "units", "parameters", "each", "MACs", "each", "slices", "of"]
    assert lines[2].split()[:5] == ["conv1", "channels", "4", "111", "7,776"]
    assert lines[-1].startswith("10 units hold")


def test_channels_need_a_structure_with_units():
    model = nn.Linear(4, 3)
    structure = trace(model, images(4))
    assert structure.size == 0
    assert structure.share == 0.0
    with pytest.raises(Exception, match="no family of units is left"):
        Channels(structure)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("given", ["input", "buffer", "sparse.mm"])
def test_networks_over_sparse_adjacencies_are_traced(given, layout):
    class Graph(nn.Module):
        def __init__(self, adjacency):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.register_buffer("adjacency", adjacency if given == "buffer" else None)

        def forward(self, x, adjacency=None):
            adjacency = self.adjacency if adjacency is None else adjacency
            spread = torch.sparse.mm if given == "sparse.mm" else torch.matmul
            return spread(adjacency, self.b(spread(adjacency, self.a(x)).relu()))

    adjacency = getattr((torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float(), layout)()
    model = Graph(adjacency)
    inputs = (torch.randn(6, 5),) if given == "buffer" else (torch.randn(6, 5), adjacency)
    structure = trace(model, inputs)
    assert [(family.name, family.size) for family in structure.families] == [("a", 8)]
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5, Channels(structure))
    small = remove(model, masks, structure)
    assert small.a.out_features == 4
    assert verify(model, masks, small, inputs) <= 1e-5
    nonzero = int((adjacency.to_dense() != 0).sum())
    products = 6 * 5 * 8 + 6 * 8 * 3 + nonzero * (8 + 3)
    assert cost(model, None, inputs).dense_macs == products
