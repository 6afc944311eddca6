"""A deployed network gives the masked outputs in whichever form is fastest, and comes back from disk bit by bit."""

import copy
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning
from pruning import Evidence, Masks, prunable, prune, scorers, snapshot
from pruning.errors import ArtefactError, ExecutionError, MaskError, StructureError
from pruning.execution import load, save, sparse_execution, sparse_layers
from pruning.execution.cutting import cut_dead
from pruning.execution.modules import Sparse
from pruning.execution.packing import PackedLinear
from pruning.execution.product import has_csr
from pruning.structure.removing.saving import save as save_removed


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 4))


def bottlenecks() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


class Encoder(nn.Module):
    """With attention, whose weights cannot run sparsely but whose heads can go, norms and dropout."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up, self.down, self.dropout = nn.Linear(16, 40), nn.Linear(40, 16), nn.Dropout(0.3)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return x + self.dropout(self.down(F.gelu(self.up(x))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.relu(self.first(x)))))


MODELS = {
    "mlp": (mlp, (7, 20)),
    "bottlenecks": (bottlenecks, (3, 3, 6, 6)),
    "encoder": (Encoder, (2, 5, 16)),
    "tied": (Tied, (4, 12)),
}


def pruned(name: str, density: float) -> tuple[nn.Module, Masks, torch.Tensor]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    model(torch.randn(8, *shape[1:]))  # norms have seen something
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), density)
    return model, masks, torch.randn(shape)


@contextmanager
def forced(fastest: str, layers: str = "sparse"):
    """As if this form of the network, and of every layer, had been measured to be the fastest."""

    def in_turn(calls, rounds, warmup=2):
        for call in calls.values():
            call()
        first = fastest if fastest in calls else "masked"
        return {name: [1.0 if name == first else 2.0] * rounds for name in calls}

    def form(gains):
        return layers if layers in gains else "dense"

    with (
        patch("pruning.execution.deploying.in_turn", in_turn),
        patch.multiple("pruning.execution.forms", fastest=form, NOISE=float("inf")),
    ):
        yield


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(x)


@pytest.mark.parametrize("density", [0.6, 0.1, 0.02])
@pytest.mark.parametrize("fastest", ["masked", "removed", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_every_form_gives_the_masked_outputs_and_comes_back_from_disk(name, fastest, density, tmp_path):
    model, masks, x = pruned(name, density)
    before = copy.deepcopy(model.state_dict())
    with forced(fastest):
        deployed = pruning.deploy(model, masks, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    masked = copy.deepcopy(model)
    masks.apply_(masked)
    expected, found = outputs(masked, x), outputs(deployed.model, x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert deployed.difference <= 1e-5
    if fastest == "removed" and not small(name, density):
        fastest = "masked"  # nothing is removed
    assert bool(sparse_layers(deployed.model)) == (fastest == "sparse")
    assert {layer.chosen for layer in deployed.layers} == {"sparse" if fastest == "sparse" else "dense"}
    assert (deployed.parameters[0] > deployed.parameters[1]) == (fastest != "masked" and small(name, density))
    assert ("nothing is faster without them" in str(deployed)) == (fastest == "masked" and small(name, density))
    others = "dense, with zeros" in str(deployed)
    assert others == bool(deployed.others) == (name in ("bottlenecks", "encoder"))
    deployed.save(tmp_path / "it.safetensors")
    again = load(tmp_path / "it.safetensors", MODELS[name][0]())
    assert not again.training
    assert sparse_layers(again) == sparse_layers(deployed.model)
    assert torch.equal(outputs(again, x), found)


def forms(model: nn.Module) -> dict[str, tuple]:
    """How each layer runs."""
    return {
        name: (type(module), module.pattern.few if isinstance(module, Sparse) else None)
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("form", ["sparse", "csr", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_of_every_form_give_the_masked_outputs_and_come_back_from_disk(name, form, tmp_path):
    if form == "csr" and not has_csr():
        pytest.skip("torch was built without MKL")
    model, masks, x = pruned(name, 0.2)
    with forced("sparse", form):
        deployed = pruning.deploy(model, masks, x)
    convolution = {layer.name for layer in deployed.layers if "packed" not in layer.milliseconds}
    assert convolution == {name for name in masks if model.get_parameter(name).dim() == 4} - {"0.weight"}
    for layer in deployed.layers:
        assert layer.chosen == ("dense" if form == "packed" and layer.name in convolution else form)
        module = deployed.model.get_submodule(layer.name.removesuffix(".weight"))
        kind = PackedLinear if layer.chosen == "packed" else Sparse if layer.chosen != "dense" else type(module)
        assert isinstance(module, kind)
        assert layer.columns == columns(name, layer)
        if isinstance(module, Sparse):
            assert module.pattern.few == (layer.columns if form == "csr" else 0)
    masks.apply_(model)
    found = outputs(deployed.model, x)
    assert torch.allclose(found, outputs(model, x), rtol=1e-4, atol=1e-5)
    deployed.save(tmp_path / "it.safetensors")
    again = load(tmp_path / "it.safetensors", MODELS[name][0]())
    assert forms(again) == forms(deployed.model) == forms(copy.deepcopy(deployed.model))
    assert torch.equal(outputs(again, x), found)
    assert torch.equal(outputs(copy.deepcopy(deployed.model), x), found)
    assert again.state_dict().keys() == model.state_dict().keys()


def columns(name: str, layer) -> int:
    """Rows of the inputs above, or positions of the images, as each layer sees them."""
    if name == "bottlenecks":
        return {"3.weight": 9, "6.weight": 9, "8.weight": 3}[layer.name]
    return {"mlp": 7, "encoder": 10, "tied": 4}[name]


def test_files_without_the_newer_forms_are_read(tmp_path):
    model, masks, x = pruned("mlp", 0.2)
    with forced("sparse"):
        deployed = pruning.deploy(model, masks, x)
    deployed.save(tmp_path / "new.safetensors")
    tree = snapshot.load(tmp_path / "new.safetensors")
    del tree["packed"]
    for kept in tree["sparse"].values():
        del kept["few"]
    snapshot.save(tmp_path / "old.safetensors", tree)
    again = load(tmp_path / "old.safetensors", mlp())
    assert forms(again) == forms(deployed.model)
    assert torch.equal(outputs(again, x), outputs(deployed.model, x))


@pytest.mark.skipif(not has_csr(), reason="torch was built without MKL")
def test_one_form_for_all_layers_is_taken_where_the_whole_is_faster_so():
    def in_turn(calls, rounds, warmup=2):
        for call in calls.values():
            call()
        return {name: [1.0 if name == "all csr" else 2.0] * rounds for name in calls}

    model, masks, x = pruned("mlp", 0.2)
    together = patch("pruning.execution.deploying._TOGETHER", float("inf"))
    with forced("sparse"), patch("pruning.execution.deploying.in_turn", in_turn), together:
        deployed = pruning.deploy(model, masks, x)
    assert [layer.chosen for layer in deployed.layers] == ["csr"] * 3
    assert all(few == 7 for kind, few in forms(deployed.model).values() if issubclass(kind, Sparse))


def test_the_speedup_is_the_median_of_those_within_turns():
    def in_turn(calls, rounds, warmup=2):
        return {name: [9.0] * 3 for name in calls} | {"masked": [8.0, 3.0, 9.0], "sparse": [1.0, 1.5, 3.0]}

    model, masks, x = pruned("mlp", 0.2)
    with forced("sparse"), patch("pruning.execution.deploying.in_turn", in_turn):
        deployed = pruning.deploy(model, masks, x)
    assert (deployed.masked, deployed.final) == (8000, 1500)
    assert deployed.speedup == 3  # of 8, 2 and 3
    assert "3.00 times faster" in str(deployed)


def small(name: str, density: float) -> bool:
    """Whether so few weights leave units without a reader; those of the tied layers would all have to go at once."""
    return density < 0.5 and name != "tied"


def test_layers_that_are_faster_dense_stay_dense():
    model, masks, x = pruned("mlp", 0.1)
    with forced("sparse", layers="dense"):
        deployed = pruning.deploy(model, masks, x)
    assert not sparse_layers(deployed.model)
    assert {layer.chosen for layer in deployed.layers} == {"dense"}


def test_what_is_measured_is_measured():
    model, masks, x = pruned("mlp", 0.1)
    deployed = pruning.deploy(model, masks, x)
    assert min(deployed.masked, deployed.removed, deployed.final) > 0
    assert deployed.final <= 1.02 * min(deployed.masked, deployed.removed)
    table = str(deployed)
    for layer in deployed.layers:
        assert layer.dense > 0
        assert layer.sparse > 0
        assert f"{layer.outputs}x{layer.inputs}" in table
        assert 0 < layer.kept <= layer.outputs * layer.inputs
    before, after = deployed.parameters
    if deployed.kept_structure is None:
        assert after < before
        assert f"{before - after:,} of {before:,}" in table
    else:  # the masked network was the fastest
        assert after == before == 1474
        assert "dead units stay: nothing is faster without them" in table


def test_kept_weights_are_those_of_the_removed_network():
    model, masks, x = pruned("mlp", 0.1)
    with forced("sparse"):
        deployed = pruning.deploy(model, masks, x)
    for layer in deployed.layers:
        weight = deployed.model.get_submodule(layer.name.removesuffix(".weight")).weight
        assert weight.shape == (layer.outputs, layer.inputs)
        assert int((weight != 0).sum()) == layer.kept
    live = sum(layer.kept for layer in deployed.layers)
    assert live <= masks.kept


def test_a_network_that_cannot_be_traced_is_deployed_with_all_its_units(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            hidden = torch.relu(self.first(x))
            return self.second(hidden) if float(hidden.sum()) > -1 else hidden  # looks at a value

    torch.manual_seed(0)
    model = Odd()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.2)
    x = torch.randn(3, 6)
    with patch("pruning.execution.deploying.trace", side_effect=StructureError("Odd: no")), forced("sparse"):
        deployed = pruning.deploy(model, masks, x)
    masks.apply_(model)
    assert torch.allclose(outputs(deployed.model, x), outputs(model, x), atol=1e-6)
    assert "dead units stay: Odd: no" in str(deployed)
    assert "Odd: no" in caplog.text


def test_inputs_by_name_and_half_precision():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, *, left, right):
            return self.layer(left + right)

    model = Named()
    masks = Masks({"layer.weight": torch.rand(3, 6) < 0.5})
    inputs = {"left": torch.randn(2, 6), "right": torch.randn(2, 6)}
    with forced("sparse"):
        assert sparse_layers(pruning.deploy(model, masks, inputs).model)
        halves = {name: x.bfloat16() for name, x in inputs.items()}
        deployed = pruning.deploy(model.bfloat16(), masks, halves)
    assert deployed.layers == ()  # no kernels
    assert not sparse_layers(deployed.model)


def test_networks_that_are_not_finite_are_refused():
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x) * float("nan")

    masks = Masks({"layer.weight": torch.rand(3, 6) < 0.5})
    with pytest.raises(ExecutionError, match=r"Infinite: outputs of the \w+ form differ by inf"):
        pruning.deploy(Infinite(), masks, torch.randn(2, 6))


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(MaskError, match="nothing"):
        pruning.deploy(mlp(), {"nothing.weight": torch.ones(2, 2, dtype=torch.bool)}, torch.randn(2, 20))


def test_files_and_models_that_do_not_fit_are_refused(tmp_path):
    model, masks, x = pruned("mlp", 0.1)
    path, other = tmp_path / "it.safetensors", tmp_path / "removed.safetensors"
    with forced("sparse"):
        pruning.deploy(model, masks, x).save(path)
    save_removed(model, other)
    with pytest.raises(ArtefactError, match="not of a deployed network"):
        load(other, mlp())
    with pytest.raises(StructureError, match="only in"):
        load(path, nn.Sequential(nn.Linear(20, 30)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtefactError):
        load(path, mlp())
    with pytest.raises(ArtefactError):
        load(tmp_path / "missing.safetensors", mlp())


def test_a_network_in_training_is_saved_in_its_sparse_form(tmp_path):
    """`save` takes any network with sparse layers, of which a kept weight may just be zero."""
    model, masks, x = pruned("mlp", 0.2)
    with torch.no_grad():
        model[0].weight[masks["0.weight"]] *= 0
    names = sparse_execution(model, masks)
    save(model, tmp_path / "it.safetensors")
    again = load(tmp_path / "it.safetensors", mlp())
    assert sparse_layers(again) == sparse_layers(model)
    assert len(names) == 3
    assert torch.equal(outputs(again, x), outputs(model, x))


def test_layers_that_are_called_by_keyword():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(input=x)

    with forced("sparse"):
        deployed = pruning.deploy(Called(), {"layer.weight": torch.rand(3, 6) < 0.5}, torch.randn(2, 6))
    assert len(deployed.layers) == 1


def test_a_network_of_which_every_masked_layer_goes():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(x + self.branch(x))

    model = Branch()
    gone = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.branch.named_parameters(prefix="branch")}
    x = torch.randn(2, 6)
    with forced("sparse"):
        deployed = pruning.deploy(model, gone, x)
    Masks(gone).apply_(model)
    assert torch.allclose(outputs(deployed.model, x), outputs(model, x), atol=1e-6)


@pytest.mark.parametrize("names", [["first.weight"], ["second.weight"], ["first.weight", "second.weight"]])
def test_tied_weights_are_masked_under_any_of_their_names(names):
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(4, 12)
    masks = Masks(dict.fromkeys(names, torch.rand(12, 12) < 0.2))
    with forced("sparse"):
        deployed = pruning.deploy(model, masks, x)
    assert [layer.name for layer in deployed.layers] == ["first.weight"]
    masks.apply_(model)
    assert torch.allclose(outputs(deployed.model, x), outputs(model, x), atol=1e-6)


def test_views_of_outputs_run_in_every_form():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.Linear(6, 12), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.layer(x).view(-1, 4))

    model = Viewed()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    with forced("sparse"):
        deployed = pruning.deploy(model, masks, torch.randn(2, 6))
    assert len(sparse_layers(deployed.model)) == 2


@pytest.mark.parametrize("fastest", ["removed", "sparse"])
def test_a_model_on_the_meta_device_comes_to_the_cpu(fastest, tmp_path):
    model, masks, x = pruned("bottlenecks", 0.2)
    with forced(fastest):
        deployed = pruning.deploy(model, masks, x)
    deployed.save(tmp_path / "it.safetensors")
    with torch.device("meta"):
        again = bottlenecks()
    again = load(tmp_path / "it.safetensors", again)
    assert torch.equal(outputs(again, x), outputs(deployed.model, x))
    assert sparse_layers(again) == sparse_layers(deployed.model)


def test_buffers_that_modules_share_stay_shared(tmp_path):
    class Shared(nn.Module):
        def __init__(self, value=0.0):
            super().__init__()
            self.left, self.right, self.layer = nn.Module(), nn.Module(), nn.Linear(6, 3)
            self.left.register_buffer("shift", torch.full((6,), value))
            self.right.register_buffer("shift", self.left.shift)

        def forward(self, x):
            return self.layer(x + self.left.shift * self.right.shift)

    model, x = Shared(2.0), torch.randn(2, 6)
    save(model, tmp_path / "it.safetensors")
    again = load(tmp_path / "it.safetensors", Shared())
    assert torch.equal(outputs(again, x), outputs(model, x))
    assert again.left.shift is again.right.shift


def test_a_network_with_cut_layers_is_saved_as_the_whole_one(tmp_path):
    model, x = mlp(), torch.randn(3, 20)
    mask = torch.zeros(30, 20, dtype=torch.bool)
    mask[:3] = True
    Masks({"0.weight": mask}).apply_(model)
    assert cut_dead(model, {"0.weight": mask}) == ("0.weight",)
    save(model, tmp_path / "it.safetensors")
    assert torch.allclose(outputs(load(tmp_path / "it.safetensors", mlp()), x), outputs(model, x), atol=1e-6)


def test_what_is_wrong_with_the_inputs_is_said_by_the_model(caplog):
    model, masks, _ = pruned("mlp", 0.2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        pruning.deploy(model, masks, torch.randn(4, 21))
    assert not caplog.records


def test_a_dense_choice_of_an_unchanged_network_is_no_faster():
    model = nn.Sequential(nn.Linear(6, 5))
    with forced("masked", layers="dense"):
        deployed = pruning.deploy(model, {"0.weight": torch.rand(5, 6) < 0.9}, torch.randn(2, 6))
    assert deployed.masked == deployed.removed == deployed.final


def test_a_model_that_writes_into_its_inputs_leaves_those_of_the_caller():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.out(torch.relu(self.layer(x.mul_(2))))

    model, x = Writes(), torch.randn(2, 6)
    before = x.clone()
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    deployed = pruning.deploy(model, masks, x)
    assert torch.equal(x, before)
    masks.apply_(model)
    assert torch.allclose(outputs(deployed.model, x.clone()), outputs(model, x.clone()), atol=1e-6)


def test_an_encoder_with_padding():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x, pad = torch.randn(3, 6, 16), torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 6])
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.4)
    deployed = pruning.deploy(model, masks, {"src": x, "src_key_padding_mask": pad})
    assert deployed.difference <= 1e-5
