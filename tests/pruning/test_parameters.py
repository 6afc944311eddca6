"""Which parameters count as prunable, under which names, each storage once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruning import prunable
from pruning.errors import ParameterError
from pruning.parameters import named, unwrapped


def chosen(model: nn.Module, **arguments: Any) -> list[str]:
    return list(prunable(model, **arguments))


def refusal(model: nn.Module, **arguments: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        prunable(model, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self, view: Callable[[nn.Parameter], nn.Parameter] = lambda p: p):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = view(self.first.weight)


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.positions = nn.Parameter(torch.zeros(7, 4))
        self.norm = nn.LayerNorm(4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.tokens.weight


RECURRENT = ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(2, 3), ["weight"]),
        (nn.Conv1d(2, 4, 3), ["weight"]),
        (nn.Conv2d(2, 4, 3, groups=2), ["weight"]),
        (nn.Conv3d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose1d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose2d(2, 4, 3), ["weight"]),
        (nn.ConvTranspose3d(2, 4, 3), ["weight"]),
        (nn.Bilinear(2, 3, 4), ["weight"]),
        (nn.RNN(2, 3), RECURRENT),
        (nn.GRU(2, 3), RECURRENT),
        (nn.LSTM(2, 3), RECURRENT),
        (nn.LSTM(2, 3, proj_size=2), [*RECURRENT, "weight_hr_l0"]),
        (nn.GRU(2, 3, bidirectional=True), [*RECURRENT, "weight_ih_l0_reverse", "weight_hh_l0_reverse"]),
        (nn.RNNCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.LSTMCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_default_choice(module: nn.Module, names: list[str]) -> None:
    assert chosen(module) == names
    parameters = dict(module.named_parameters())
    assert all(p is parameters[name] for name, p in prunable(module).items())


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(3),
        nn.LayerNorm(3),
        nn.GroupNorm(1, 3),
        nn.RMSNorm(3),
        nn.PReLU(),
        nn.Embedding(3, 2),
        nn.EmbeddingBag(3, 2),
        nn.ParameterList([torch.zeros(3, 3)]),
        nn.ReLU(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_norms_embeddings_and_bare_parameters_are_not_prunable_by_default(module: nn.Module) -> None:
    assert "include=" in refusal(module)


def test_biases_norms_and_positions_stay_out_and_order_is_the_models() -> None:
    assert chosen(small()) == ["0.weight", "3.weight"]
    assert chosen(nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})) == ["b.weight", "a.weight"]
    encoder = nn.TransformerEncoderLayer(4, 2, 8)
    assert chosen(encoder) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]


@pytest.mark.parametrize(
    "view",
    [lambda p: p, lambda p: nn.Parameter(p.detach()), lambda p: nn.Parameter(p.detach().t())],
    ids=["parameter", "storage", "transposed"],
)
def test_tied_weights_appear_once_under_their_first_name(view: Callable[[nn.Parameter], nn.Parameter]) -> None:
    model = Tied(view)
    assert chosen(model) == ["first.weight"]
    assert chosen(model, include="second.weight") == ["first.weight"]
    assert "nothing to prune" in refusal(model, exclude="second.weight")
    assert "exclude= leaves none" in refusal(model, exclude="*")


def test_equal_values_are_not_tied() -> None:
    assert chosen(Tied(lambda p: nn.Parameter(p.detach().clone()))) == ["first.weight", "second.weight"]


def test_halves_of_one_storage_are_two_weights() -> None:
    whole = torch.randn(8, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight, model[1].weight = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])
    assert chosen(model) == ["0.weight", "1.weight"]


def test_head_tied_to_an_embedding_counts_as_the_embedding() -> None:
    assert chosen(Language()) == ["body.weight"]
    assert chosen(Language(), include="head.weight") == ["tokens.weight"]
    assert chosen(Language(), include=["tokens.*", "body.weight"]) == ["tokens.weight", "body.weight"]


def test_frozen_parameters_only_on_request() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    assert chosen(model) == ["3.weight"]
    assert chosen(model, frozen=True) == ["0.weight", "3.weight"]
    model.requires_grad_(False)
    assert "frozen=True" in refusal(model)
    assert "frozen" not in refusal(model, frozen=True, exclude="*")


def test_include_and_exclude() -> None:
    model = small()
    assert chosen(model, include="3.*") == ["3.weight", "3.bias"]
    assert chosen(model, include=["3.bias", "0.weight"]) == ["0.weight", "3.bias"]
    assert chosen(model, include=(glob for glob in ["3.bias"])) == ["3.bias"]
    assert chosen(model, exclude="3.*") == ["0.weight"]
    assert chosen(model, include="*.weight", exclude=["0.*", "1.*"]) == ["3.weight"]
    assert chosen(model, include=lambda _, p: p.dim() == 1 and p.numel() == 2) == ["3.bias"]
    assert chosen(model, exclude=lambda name, _: name.startswith("0")) == ["3.weight"]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_glob_that_matches_nothing_is_named(argument: str) -> None:
    message = refusal(small(), **{argument: ["0.weight", "conv*"]})
    assert f"{argument}='conv*'" in message
    assert "0.weight" in message  # what there is


def test_lazy_module_is_named() -> None:
    message = refusal(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
    assert message.startswith("1.weight: ")
    assert "run the model once" in message


def test_model_without_parameters() -> None:
    assert "nothing to prune among 0 parameters" in refusal(nn.Sequential())


def test_wrappers_give_the_inner_names() -> None:
    model = small()
    for wrapper in (torch.compile(model), nn.DataParallel(model), nn.DataParallel(torch.compile(model))):
        assert unwrapped(wrapper) is model
        assert chosen(wrapper) == ["0.weight", "3.weight"]
        assert list(named(wrapper)) == list(dict(model.named_parameters()))


def test_named_gives_every_alias() -> None:
    model = Tied()
    assert list(named(model)) == ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_meta_device_models() -> None:
    with torch.device("meta"):
        assert chosen(small()) == ["0.weight", "3.weight"]
        assert chosen(Tied()) == ["first.weight"]
        assert chosen(Language()) == ["body.weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_empty_parameters_are_not_mistaken_for_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 3))
    assert chosen(model) == ["0.weight", "1.weight"]
