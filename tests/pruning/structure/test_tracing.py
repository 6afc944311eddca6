"""What `trace` finds, freezes and refuses; wrapped models, models of other libraries, and numbers in their code."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.errors import StructureError
from pruning.structure import Channels, remove, trace, verify
from tests.pruning.structure.masking import masks_of, some_kept
from tests.pruning.structure.zoo import build
from tests.pruning.structure.zoo.attention import Attention, FusedAttention
from tests.pruning.structure.zoo.case import images
from tests.pruning.structure.zoo.convolutions import Residual


def families(structure):
    return {family.name: (family.kind, family.size) for family in structure.families}


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


class HardCoded(nn.Module):
    """Its attention writes the number of heads into its code; its other layers do not."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(10, 36), nn.Linear(12, 10)
        self.up, self.down = nn.Linear(10, 7), nn.Linear(7, 10)

    def forward(self, x):
        q, k, v = self.attention_inputs(x)
        return x + self.proj((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(*x.shape[:2], -1))

    def attention_inputs(self, x):
        return self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.up, self.down = HardCoded(), nn.Linear(10, 7), nn.Linear(7, 10)

    def forward(self, x):
        return self.down(F.relu(self.up(self.attention(x))))


def test_what_is_written_into_code_is_kept_whole_and_the_rest_is_pruned():
    model, inputs = Around().eval(), images(5, 10)
    structure = trace(model, inputs)
    assert families(structure) == {"up": ("neurons", 7)}
    assert "attention" in structure.frozen
    assert "kept whole: attention" in str(structure)
    masks = masks_of(structure, some_kept(structure, 0))
    assert verify(model, masks, remove(model, masks, structure), inputs) <= 1e-5


def test_attributes_that_code_reads_are_adjusted():
    model, inputs = build("fused attention")
    structure = trace(model, inputs)
    kept = some_kept(structure, 1)
    small = remove(model, masks_of(structure, kept), structure)
    assert small.num_heads == int(kept.sum()) < 3
    assert small.head_dim == 4
    assert type(small) is FusedAttention


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


class Wide(nn.Module):
    """Keys and values have heads of one width, an attribute; where there is a single head, its width seems a choice."""

    def __init__(self, heads):
        super().__init__()
        self.width, self.norm = 8, nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8 * heads) for _ in range(3))
        self.out = nn.Linear(8 * heads, 8)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).view(*x.shape[:2], -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))


def test_sizes_that_share_an_attribute_are_kept_in_that_module_alone():
    model, inputs = nn.Sequential(Wide(1), Wide(3)).eval(), images(5, 8)
    structure = trace(model, inputs)
    assert {name.split(".")[0] for name in structure.frozen} == {"0"}
    assert families(structure) == {"1.q": ("heads", 3)}
    for seed in range(3):
        masks = masks_of(structure, some_kept(structure, seed))
        assert verify(model, masks, remove(model, masks, structure), images(4, 8)) <= 1e-5


class Scale(nn.Module):
    """Computes with the size of what may shrink: by a number, by a tensor, by the default scale of attention."""

    def __init__(self, form):
        super().__init__()
        self.form, self.first, self.second = form, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = F.relu(self.first(x))
        if self.form == "number":
            return self.second(y / y.shape[-1])
        if self.form == "tensor":
            return self.second(y) / torch.sqrt(torch.tensor(y.shape[-1], dtype=torch.float32))
        return self.second(y) + F.scaled_dot_product_attention(y, y, y).sum(-1, keepdim=True)


@pytest.mark.parametrize("form", ["number", "tensor", "attention"])
def test_numbers_that_follow_from_a_size_are_found_out(form):
    structure = trace(Scale(form).eval(), images(5, 4))
    assert not structure.families
    assert "takes a number from a size" in str(structure)
    assert "to let these shrink" in str(structure)


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


def test_a_small_network_is_traced_and_pruned_again():
    """Attention with fewer heads than its width has room for, too."""
    model, inputs = build("transformer")
    for seed in range(2):
        structure = trace(model, inputs)
        assert {family.kind for family in structure.families} == {"heads", "neurons"}
        masks = masks_of(structure, some_kept(structure, seed, 0.7))
        small = remove(model, masks, structure)
        assert verify(model, masks, small, inputs) <= 1e-5
        model = small


class Doubled(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return 2 * output, weights


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm, self.attention, self.up, self.down = nn.LayerNorm(12), attention, nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x, padding=None):
        y = self.norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return self.down(F.relu(self.up(x)))


def test_attention_with_a_forward_pass_of_its_own_keeps_its_heads():
    structure = trace(Attending(Doubled(12, 4, batch_first=True)).eval(), images(5, 12))
    assert families(structure) == {"up": ("neurons", 9)}
    assert "attention" in structure.frozen


def test_encoders_with_padding_lose_heads():
    """Torch's encoder makes nested tensors of padded examples, which attention of other widths cannot take."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(2, 7, 12), torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    structure = trace(model, x)
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    masks.apply_(model)
    expected, found = (m(x, src_key_padding_mask=padding)[~padding] for m in (model, small))
    assert torch.allclose(expected, found, atol=1e-5)


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


class Repeated(nn.Module):
    """A number of steps, a shift and a fill that happen to be equal to a width."""

    def __init__(self, form):
        super().__init__()
        self.form, self.number, self.first, self.second = form, 6, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        if self.form == "steps":
            for _ in range(self.number):
                x = x + self.second(F.relu(self.first(x)))
            return x
        y = self.second(F.relu(self.first(torch.roll(x, self.number, 1) if self.form == "shift" else x)))
        return y * torch.full((1,), self.number) if self.form == "fill" else y


@pytest.mark.parametrize("form", ["steps", "shift", "fill"])
def test_numbers_that_happen_to_be_a_width_stay(form):
    model, inputs = Repeated(form).eval(), images(7, 4)
    structure = trace(model, inputs)
    assert families(structure) == {"first": ("neurons", 6)}
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert small.number == 6
    assert verify(model, masks, small, inputs) <= 1e-5


class Limited(nn.Module):
    """Looks at the first tokens alone; the limit happens to be the width."""

    def __init__(self):
        super().__init__()
        self.limit, self.first, self.second = 16, nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x[:, : self.limit])))


def test_integers_that_the_example_does_not_depend_on_stay():
    model = Limited().eval()
    structure = trace(model, images(5, 4))
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure)
    assert small.limit == 16 > small.first.out_features
    assert verify(model, masks, small, images(20, 4)) <= 1e-5


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_pruned_attention_takes_all_that_attention_takes(bias, batch_first):
    """Against torch's own, whose removed heads are masked."""
    torch.manual_seed(0)
    model = Attention(bias=bias).eval()
    model.attention.batch_first = batch_first
    x, other = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    structure = trace(model, torch.randn(2, 5, 12))
    masks = masks_of(structure, some_kept(structure, 0))
    small = remove(model, masks, structure, verified=False).attention
    masks.apply_(model)
    whole = model.attention
    q, kv = (x, other) if batch_first else (x.transpose(0, 1), other.transpose(0, 1))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    mask = torch.randn(5, 7)
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": mask},
        {"attn_mask": mask > 1},
        {"attn_mask": mask, "key_padding_mask": padding.float()},
    ):
        expected, _ = whole(q, kv, kv, need_weights=False, **options)
        found, weights = small(q, kv, kv, need_weights=False, **options)
        assert torch.allclose(found, expected, atol=1e-5)
        assert weights is None
    expected, _ = whole(x[0], other[0], other[0])
    found, weights = small(x[0], other[0], other[0])
    assert torch.allclose(found, expected, atol=1e-5)
    assert weights.shape == (5, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(5))


def test_channels_need_a_structure_with_units():
    model = nn.Linear(4, 3)
    structure = trace(model, images(4))
    assert structure.size == 0
    assert structure.share == 0.0
    with pytest.raises(Exception, match="no family of units is left"):
        Channels(structure)
