"""What follows a removal without training: biases that make up for it, and batch norm's statistics."""

import copy

import pytest
import torch
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import MaskError
from pruning.recovery import compensate_bias, reestimate_batchnorm


def forward(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def layer_outputs(model: nn.Sequential, index: int, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of a layer, with inputs as they came to it."""
    return model[index](inputs).detach().movedim(1, -1).reshape(-1, model[index].weight.shape[0])


CASES = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tokens": (lambda: nn.Linear(6, 4), None),
    "conv": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "padded, strided, grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (4, 7, 7)),
    "conv1d, circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_every_output_channel_stays(name):
    make, shape = CASES[name]
    torch.manual_seed(0)
    layer = make().double()
    inputs = torch.randn(20, 5, 6) if shape is None else torch.randn(20, *shape)
    inputs = inputs.double() + 0.7
    before = copy.deepcopy(layer)
    evidence = Evidence(layer, prunable(layer), inputs.split([13, 7]), forward)
    masks = prune(scorers.random(evidence), 0.4)
    compensate_bias(evidence, masks)
    assert masks.agree(layer)
    others = [d for d in range(before(inputs).dim()) if d != (2 if shape is None else 1)]
    torch.testing.assert_close(layer(inputs).mean(others), before(inputs).mean(others))
    weight, kept = before.weight.detach(), layer.weight.detach()
    assert torch.equal(kept, weight * masks["weight"])


def test_constant_channels_go_without_a_trace():
    """Hidden units that always give the same are removed with their outgoing weights: outputs as before, anywhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0.0
    inputs, unseen = torch.randn(30, 5).double(), torch.randn(9, 5).double()
    want = model(unseen)
    parameters = prunable(model, exclude="0.weight")
    masks = Masks.dense(parameters)
    masks["2.weight"][:, [1, 4, 6]] = False
    compensate_bias(Evidence(model, parameters, [inputs], forward), masks)
    torch.testing.assert_close(model(unseen), want)
    assert not bool(model[2].weight[:, [1, 4, 6]].any())


def test_layers_without_bias_and_uses_of_one_module():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2, bias=False)).double()
    inputs = torch.randn(10, 4).double()
    entered = torch.cat([inputs, model[:2](inputs)]).detach()
    before = shared(entered).mean(0)
    evidence = Evidence(model, prunable(model), [inputs], forward)
    compensate_bias(evidence, prune(scorers.magnitude(evidence), 0.5))
    torch.testing.assert_close(shared(entered).mean(0), before)
    assert model[3].bias is None


def test_masks_of_another_model_are_refused_and_change_nothing():
    model = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(model.state_dict())
    evidence = Evidence(model, prunable(model), [torch.randn(3, 4)], forward)
    with pytest.raises(MaskError, match="in only one of"):
        compensate_bias(evidence, {"other.weight": torch.ones(4, 4, dtype=torch.bool)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batch_norm_is_estimated_anew_by_its_definition():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5)
    ).double()
    model.train()
    model[5].eval()
    model[1].momentum = 0.3
    for _ in range(3):
        model(torch.randn(8, 2, 6, 6).double())
    batches = [torch.randn(8, 2, 6, 6).double() for _ in range(4)]
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    reestimate_batchnorm(model, batches)
    assert torch.equal(torch.random.get_rng_state(), state)  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert model[1].momentum == 0.3
    inner = [model[0](batch).detach() for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inner]).mean(0))
    variances = [x.movedim(1, 0).reshape(3, -1).var(1) for x in inner]
    torch.testing.assert_close(model[1].running_var, torch.stack(variances).mean(0))
    normed = [
        nn.functional.batch_norm(x, None, None, model[1].weight, model[1].bias, training=True, eps=model[1].eps)
        for x in inner
    ]
    last = [model[4](model[3](x)).detach() for x in normed]
    torch.testing.assert_close(model[5].running_mean, torch.stack([x.mean(0) for x in last]).mean(0))


class Named(nn.Module):
    """Batch norm of a difference of two named inputs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, left, right):
        return self.norm(left - right)


@pytest.mark.parametrize("given", ["keywords", "positional"])
def test_batch_norm_is_estimated_from_several_inputs(given):
    torch.manual_seed(0)
    model = Named()
    pairs = [(torch.randn(8, 3), torch.randn(8, 3)) for _ in range(3)]
    reestimate_batchnorm(model, [{"right": y, "left": x} if given == "keywords" else (x, y) for x, y in pairs])
    torch.testing.assert_close(model.norm.running_mean, torch.stack([(x - y).mean(0) for x, y in pairs]).mean(0))


def test_without_batches_nothing_changes():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(5, 3))
    before = copy.deepcopy(model.state_dict())
    reestimate_batchnorm(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].momentum == 0.1
