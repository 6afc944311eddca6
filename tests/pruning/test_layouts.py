"""Layouts: what competes along the inputs of an output does so in every kind of weight, as in its twin of Linears."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from transformers.pytorch_utils import Conv1D

from pruning import Evidence, prunable, prune, scorers
from pruning.allocation import ERK, Allocation, NofM, PerRow
from pruning.dynamic import Gradual, Movement, SoftMask
from pruning.errors import AllocationError, CoverageWarning, GranularityError
from pruning.granularity import Blocks, Granularity, Weights
from pruning.layouts import LaidOut, Layout, layouts
from pruning.recovery import compensate, compensate_bias

CHOICES: list[tuple[Granularity, Allocation, float | None]] = [
    (Weights(), PerRow(), 0.5),
    (Weights(), NofM(2, 4), None),
    (Weights(), NofM(1, 3), None),
    (Blocks((2, 2)), ERK(), 0.5),
    (Blocks((2, 3)), ERK(), 0.5),
    (Blocks((1, 4)), PerRow(), 0.5),
]


@given(
    groups=st.sampled_from([0, 1, 2]),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_undone(groups: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape[0] *= max(1, groups)
    dims = torch.randperm(len(shape) + (groups > 0), generator=generator).tolist()
    stacked = dims[1:2] if len(dims) > 2 else []
    layout = Layout(outputs=tuple(dims[:1]), stacked=tuple(stacked), groups=groups)
    values = torch.randn(shape, generator=generator)
    rows = layout.rows(values)
    assert torch.equal(layout.restored(rows, values.shape), values)
    assert torch.equal(layout.restored(rows.flatten(1), values.shape), values)


class Pair(nn.Module):
    """Two linear layers of one kind."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.a, self.b = (Conv1D(8, 6), Conv1D(3, 8)) if kind is Conv1D else (nn.Linear(6, 8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def twins() -> tuple[Evidence, Evidence]:
    """The same network of Conv1D and of Linear."""
    torch.manual_seed(0)
    turned, plain = Pair(Conv1D).double(), Pair(nn.Linear).double()
    for name in "ab":
        one, other = turned.get_submodule(name), plain.get_submodule(name)
        nn.init.normal_(one.bias)
        with torch.no_grad():
            other.weight.copy_(one.weight.T)
            other.bias.copy_(one.bias)
    x, y = torch.randn(9, 6).double(), torch.randint(3, (9,))
    first, second = (Evidence(model, prunable(model), [(x, y)], loss) for model in (turned, plain))
    return first, second


@pytest.mark.parametrize("name", ["magnitude", "taylor", "snip", "grasp", "synflow", "fisher", "obd", "obs", "wanda"])
def test_scores_and_rows_of_conv1d_are_those_of_linear(name: str) -> None:
    turned, plain = twins()
    found, wanted = getattr(scorers, name)(turned), getattr(scorers, name)(plain)
    for key, score in wanted.items():
        torch.testing.assert_close(found[key], score.T)
    for granularity, allocation, density in CHOICES:
        masks, expected = (prune(s, density, granularity, allocation) for s in (found, wanted))
        for key, mask in expected.items():
            assert torch.equal(masks[key], mask.T), (granularity, allocation, key)
            assert masks[key].is_contiguous()


@pytest.mark.parametrize("how", [compensate, compensate_bias])
def test_conv1d_is_compensated_as_linear_is(how: Any) -> None:
    turned, plain = twins()
    for evidence in (turned, plain):
        how(evidence, prune(scorers.wanda(evidence), 0.5, allocation=PerRow()))
    x = torch.randn(4, 6).double()
    torch.testing.assert_close(turned.model(x), plain.model(x))


def test_masks_that_learn_go_by_rows_too() -> None:
    """Blocks of soft masks and of movement, and N:M of movement, in a Conv1D and in its twin."""
    found = []
    for evidence in twins():
        optimizer = torch.optim.SGD(evidence.model.parameters(), lr=0.05)
        batch = next(iter(evidence.batches))
        options: dict[str, Any] = {"steps": 8, "granularity": Blocks((2, 3))}
        for regime in (
            SoftMask(evidence, optimizer, density=0.5, **options),
            Movement(evidence, optimizer, threshold=0.5, rate=1e-9, **options),
            Movement(evidence, optimizer, density=0.5, steps=8, allocation=PerRow()),
        ):
            for _ in range(8):
                optimizer.zero_grad()
                loss(evidence.model, batch).backward()
                regime.before_step()
                optimizer.step()
                regime.after_step()
            turned = isinstance(evidence.model.a, Conv1D)
            found.append({name: mask.T if turned else mask for name, mask in regime.finish().items()})
        scores = scorers.movement(evidence, steps=5, threshold=0.4, penalty=0.1, granularity=Blocks((2, 3)))
        found.append({name: score.T if turned else score for name, score in scores.items()})
    for one, other in zip(found[:4], found[4:], strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name])


def test_gradual_pruning_by_a_plain_function_goes_by_rows_too() -> None:
    evidence, _ = twins()
    optimizer = torch.optim.SGD(evidence.model.parameters(), lr=0.0)
    plain = lambda e: {name: p.detach().abs() for name, p in e.parameters.items()}  # noqa: E731
    options: dict[str, Any] = {"steps": 2, "density": 0.5, "every": 1, "end": 0.5}
    regime = Gradual(evidence, optimizer, scorer=plain, allocation=PerRow(), **options)
    for _ in range(2):
        optimizer.step()
        regime.after_step()
    assert regime.finish() == prune(scorers.magnitude(evidence), 0.5, allocation=PerRow())


class Experts(nn.Module):
    """Matrices of experts in one tensor, as transformers hold them."""

    def __init__(self, transposed: bool | None) -> None:
        super().__init__()
        self.num_experts, self.hidden_size = 3, 6
        if transposed is not None:
            self.is_transposed = transposed
        shapes = [(3, 8, 6), (3, 6, 4)] if not transposed else [(3, 6, 8), (3, 4, 6)]
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 8))


@pytest.mark.parametrize("transposed", [False, True, None])
def test_every_expert_is_a_matrix_of_its_own(transposed: bool | None) -> None:
    """As with a list of Linears; where no attribute says how they lie, the width of the hidden states does."""
    torch.manual_seed(0)
    model = Experts(transposed)
    parameters = prunable(model)
    assert set(parameters) == {"gate_up_proj", "down_proj"}
    scores = scorers.magnitude(Evidence(model, parameters))
    turn = (lambda t: t.mT) if transposed else (lambda t: t)
    apart = {f"{n}.{e}": turn(s)[e].clone() for n, s in scores.items() for e in range(3)}
    for granularity, allocation, density in CHOICES:
        masks = prune(scores, density, granularity, allocation)
        wanted = prune(apart, density, granularity, allocation)
        for name, mask in masks.items():
            if isinstance(allocation, ERK):  # one competition among the blocks of all experts of a tensor
                apart_kept = torch.stack([wanted[f"{name}.{e}"] for e in range(3)]).sum()
                assert abs(int(mask.sum()) - int(apart_kept)) <= 2 * 6
                continue
            for e in range(3):
                assert torch.equal(turn(mask)[e], wanted[f"{name}.{e}"]), (granularity, allocation, name)


def test_erk_counts_experts_as_matrices() -> None:
    model = Experts(False)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    apart = {f"{n}.{e}": s[e].clone() for n, s in scores.items() for e in range(3)}
    found, wanted = prune(scores, 0.4, allocation=ERK()), prune(apart, 0.4, allocation=ERK())
    for name, mask in found.items():
        assert abs(int(mask.sum()) - sum(int(wanted[f"{name}.{e}"].sum()) for e in range(3))) <= 2


def test_transposed_convolutions_compete_by_their_outputs() -> None:
    """Row (group, output): what a brute force over outputs keeps."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    scores = scorers.magnitude(Evidence(layer, prunable(layer)))
    mask = prune(scores, 0.5, allocation=PerRow())["weight"]
    by_group, score = mask.view(2, 2, 3, 3, 3), scores["weight"].view(2, 2, 3, 3, 3)
    for group in range(2):
        for output in range(3):
            row, kept = score[group, :, output].flatten(), by_group[group, :, output].flatten()
            assert torch.equal(kept, row >= row.sort(descending=True).values[8])
    pairs = prune(scores, None, allocation=NofM(1, 2))["weight"].view(2, 2, 3, 3, 3)
    assert bool((pairs.sum(1) == 1).all())


def test_only_experts_are_taken_for_experts() -> None:
    """Not tables or biases whose first dimension is a number that has "expert" in its name."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts, self.num_shared_experts = 3, 1
            self.pos_embed, self.cls = nn.Parameter(torch.zeros(1, 9, 6)), nn.Parameter(torch.zeros(1, 1, 6))
            self.w1, self.bias1 = nn.Parameter(torch.zeros(3, 8, 6)), nn.Parameter(torch.zeros(3, 1, 8))
            self.w1_bias = nn.Parameter(torch.zeros(3, 2, 8))

    assert set(prunable(Mixture())) == {"w1"}


@pytest.mark.parametrize(
    ("hidden", "name", "shape", "outputs"),
    [
        ("hidden_size", "w1", (3, 6, 10), (2,)),
        ("hidden_size", "w2", (3, 10, 6), (2,)),
        ("hidden_size", "w2", (3, 6, 10), (1,)),
        ("hidden_size", "wo", (3, 10, 6), (2,)),
        ("hidden_size", "mystery", (3, 10, 6), ()),
        ("hidden_dim", "w1", (3, 6, 10), ()),  # some mean the inner width by it
    ],
)
def test_experts_lie_as_their_names_and_widths_say(
    hidden: str, name: str, shape: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 3
            setattr(self, hidden, 6)
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    model = Named()
    assert layouts(model, prunable(model))[name].outputs == outputs


def test_kernels_of_reparametrised_transposed_convolutions_keep_their_layout() -> None:
    model = nn.utils.parametrizations.spectral_norm(nn.ConvTranspose1d(4, 6, 3))
    parameters = prunable(model, include="*original")
    (layout,) = layouts(model, parameters).values()
    assert layout == Layout(outputs=(0, 2), groups=1)


def test_experts_that_do_not_say_how_they_lie_are_refused_by_name() -> None:
    model = Experts(None)
    model.hidden_size = 5
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    assert prune(scores, 0.5).kept == round(0.5 * sum(s.numel() for s in scores.values()))
    for allocation in (PerRow(), NofM(2, 4)):
        with pytest.raises(AllocationError, match=r"gate_up_proj: .*its module does not say"):
            prune(scores, 0.5, allocation=allocation)
    with pytest.raises(GranularityError, match="gate_up_proj: its module does not say"):
        prune(scores, 0.5, Blocks((2, 2)))
    assert prune(scores, None, allocation=NofM(1, 2, dim=2)).density == 0.5


def test_scores_in_a_plain_dict_are_outputs_first() -> None:
    turned, _ = twins()
    scores = scorers.magnitude(turned)
    assert isinstance(scores, LaidOut)
    plain = prune(dict(scores), 0.5, allocation=PerRow())
    assert set(plain["a.weight"].sum(1).tolist()) == {4}
    assert set(prune(scores, 0.5, allocation=PerRow())["a.weight"].sum(0).tolist()) == {3}
    for wrapped in (scorers.inverted(turned, scorers.magnitude), scorers.layer_shuffled(turned, scorers.magnitude)):
        assert isinstance(wrapped, LaidOut)


def test_layouts_are_not_lost_on_the_way() -> None:
    turned, plain = twins()
    scores = scorers.magnitude(turned)
    for twin in (pickle.loads(pickle.dumps(scores)), copy.deepcopy(scores)):
        assert prune(twin, 0.5, allocation=PerRow()) == prune(scores, 0.5, allocation=PerRow())
    assert type(scorers.magnitude(plain)) is dict  # as torch.load takes it


TINY = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 99, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**TINY, num_key_value_heads=1)), (1,)),
        (
            lambda: transformers.GptOssForCausalLM(transformers.GptOssConfig(**TINY, head_dim=4, num_local_experts=4)),
            (2,),
        ),
        (lambda: transformers.JetMoeForCausalLM(transformers.JetMoeConfig(**TINY, kv_channels=4)), (1,)),
    ],
    ids=["Mixtral", "GPT-OSS", "JetMoe"],
)
def test_experts_of_language_models_are_prunable_and_laid_out(make: Any, outputs: tuple[int, ...]) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error", CoverageWarning)
        model = make()
        parameters = prunable(model)
    stacked = [p for n, p in model.named_parameters() if p.dim() == 3]
    assert stacked
    assert {id(p) for p in stacked} <= {id(p) for p in parameters.values()}
    known = layouts(model, parameters)
    assert {known[n].outputs for n, p in parameters.items() if p.dim() == 3} == {outputs}


def test_gpt2_is_covered() -> None:
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=9, vocab_size=20, pad_token_id=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageWarning)
        parameters = prunable(model)
    assert len(parameters) == 2 * 4 + 1
    assert set(layouts(model, parameters)) == set(parameters) - {"score.weight"}


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "torch.nn.utils.prune"],
)
def test_what_is_left_out_is_said(wrap: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    wrap(model[0])
    with pytest.warns(CoverageWarning, match=r"6\d\.\d% of the weights.*0\..*(original|orig)") as caught:
        parameters = prunable(model)
    assert set(parameters) == {"1.weight"}
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageWarning)
        prunable(model, include="1.weight")
        assert len(prunable(nn.Sequential(nn.Embedding(99, 4), nn.Linear(4, 4)))) == 1
        frozen = nn.Sequential(nn.Linear(6, 8), wrap(nn.Linear(8, 4)))
        for p in frozen[1].parameters():
            p.requires_grad_(False)
        prunable(frozen)
