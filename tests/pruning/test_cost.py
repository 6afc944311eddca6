"""Parameters and multiply-accumulates, by hand and by counting every multiplication of a kept weight."""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning import Masks, prunable
from pruning.cost import Cost, cost, latency
from pruning.errors import MaskError


def masks_of(model: nn.Module, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in prunable(model).items()})


def dense(model: nn.Module, *inputs: Tensor) -> Cost:
    return cost(model, None, inputs)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(7, 5), (1, 7), 7 * 5),
        (nn.Linear(7, 5), (3, 4, 7), 12 * 7 * 5),
        (nn.Conv1d(3, 4, 3, padding=1), (1, 3, 10), 10 * 4 * 3 * 3),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (1, 4, 9, 9), 5 * 5 * 6 * 2 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2, bias=False), (2, 4, 8, 8), 2 * 4 * 4 * 4 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),
        (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2), (2, 4, 5), 2 * 5 * 4 * 3 * 4),
    ],
    ids=str,
)
def test_dense_macs_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    found = dense(layer, torch.zeros(shape))
    assert (found.dense_macs, found.macs) == (macs, macs)
    weights = layer.weight.numel()
    assert (found.prunable, found.kept) == (weights, weights)
    assert found.parameters == found.nonzero == sum(p.numel() for p in layer.parameters())


def of_linear(layer: nn.Linear, mask: Tensor, x: Tensor) -> int:
    return sum(
        int(mask[o, i]) for _ in range(x[..., 0].numel()) for o in range(mask.shape[0]) for i in range(mask.shape[1])
    )


def of_convolution(layer: nn.Conv2d, mask: Tensor, x: Tensor) -> int:
    """One multiplication for each output entry and each kept weight that it is made of; padding counts as input."""
    out = layer(x)
    return sum(
        int(mask[o, i, a, b])
        for _, o, _, _ in product(*(range(n) for n in out.shape))
        for i, a, b in product(*(range(n) for n in mask.shape[1:]))
    )


def of_transposed(layer: nn.ConvTranspose2d, mask: Tensor, x: Tensor) -> int:
    """One multiplication for each input entry and each kept weight that spreads it."""
    return sum(
        int(mask[c, o, a, b])
        for _, c, _, _ in product(*(range(n) for n in x.shape))
        for o, a, b in product(*(range(n) for n in mask.shape[1:]))
    )


@pytest.mark.parametrize(
    ("layer", "shape", "count"),
    [
        (nn.Linear(5, 4), (2, 3, 5), of_linear),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 5, 4), of_convolution),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 3, 2), of_transposed),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_remaining_macs_by_brute_force(layer: Any, shape: tuple[int, ...], count: Any) -> None:
    masks = masks_of(layer)
    found = cost(layer, masks, torch.zeros(shape))
    assert 0 < found.macs < found.dense_macs
    assert found.macs == count(layer, masks["weight"], torch.zeros(shape))
    gone = layer.weight.numel() - int(masks["weight"].sum())
    assert found.nonzero == found.parameters - gone
    assert found.kept == found.prunable - gone
    nothing = Masks({"weight": torch.zeros_like(masks["weight"])})
    assert cost(layer, nothing, torch.zeros(shape)).macs == 0


def test_network_is_the_sum_of_its_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    masks = masks_of(model)
    found = cost(model, masks, torch.zeros(1, 1, 6, 6))
    assert found.dense_macs == 16 * 36 + 12
    assert found.macs == 16 * int(masks["0.weight"].sum()) + int(masks["5.weight"].sum())
    assert found.parameters == 36 + 4 + 8 + 12 + 3
    assert found.nonzero == found.parameters - (48 - masks.kept)


def test_weight_that_happens_to_be_zero_counts_as_there() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    found = dense(layer, torch.zeros(1, 3))
    assert (found.nonzero, found.macs) == (8, 6)


def test_layer_that_is_used_twice_costs_twice() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    masks = masks_of(model)
    found = cost(model, masks, torch.zeros(1, 4))
    assert (found.dense_macs, found.macs) == (32, 2 * masks.kept)
    assert found.parameters == 20


@pytest.mark.parametrize("same", ["parameter", "storage", "transposed"])
def test_tied_weights_are_counted_once_but_used_twice(same: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared = model[0].weight
    views = {"parameter": shared, "storage": nn.Parameter(shared.detach())}
    model[1].weight = views.get(same, nn.Parameter(shared.detach().t()))
    masks = masks_of(model)
    found = cost(model, masks, torch.zeros(1, 4))
    assert (found.prunable, found.parameters) == (16, 24)
    assert (found.dense_macs, found.macs) == (32, 2 * masks.kept)


class Product(nn.Module):
    """One weight in one operator."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.run = nn.Parameter(torch.randn(shape)), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.weight)


PRODUCTS: list[tuple[str, tuple[int, ...], Callable[[Tensor, Tensor], Tensor], tuple[int, ...], int]] = [
    ("mv", (5, 4), lambda x, w: w @ x, (4,), 1),
    ("addmv", (5, 4), lambda x, w: torch.addmv(torch.zeros(5), w, x), (4,), 1),
    ("dot", (4,), lambda x, w: x @ w, (4,), 1),
    ("vector on the left", (4,), lambda x, w: w @ x, (4, 3), 3),
    ("linear of a vector", (5, 4), nn.functional.linear, (4,), 1),
    ("bmm", (2, 5, 4), lambda x, w: torch.bmm(w, x), (2, 4, 3), 3),
    ("addbmm", (2, 4, 5), lambda x, w: torch.addbmm(torch.zeros(3, 5), x, w), (2, 3, 4), 3),
    ("baddbmm", (2, 4, 5), lambda x, w: torch.baddbmm(torch.zeros(2, 3, 5), x, w), (2, 3, 4), 3),
    ("einsum", (5, 4), lambda x, w: torch.einsum("bi,oi->bo", x, w), (3, 4), 3),
    ("conv_tbc", (3, 4, 5), lambda x, w: torch.conv_tbc(x, w, torch.zeros(5)), (7, 2, 4), 10),
    ("bilinear", (5, 3, 4), lambda x, w: nn.functional.bilinear(x, torch.ones(2, 4), w), (2, 3), 2),
    ("a slice", (6, 4), lambda x, w: x @ w[1:4].T, (3, 4), -1),
    ("chosen rows", (6, 4), lambda x, w: x @ w[torch.tensor([5, 1, 1])].T, (3, 4), -2),
    ("joined", (6, 4), lambda x, w: x @ torch.cat([w[1:2], w[2:4]]).T, (3, 4), -1),
    ("half precision", (5, 4), lambda x, w: x.bfloat16() @ w.bfloat16().T, (3, 4), 3),
]


@pytest.mark.parametrize(("name", "shape", "run", "inputs", "uses"), PRODUCTS, ids=[line[0] for line in PRODUCTS])
def test_every_product_counts(
    name: str, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor], inputs: tuple[int, ...], uses: int
) -> None:
    model = Product(shape, run)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    seen = mask[1:4] if uses == -1 else mask[[5, 1, 1]] if uses == -2 else mask
    found = cost(model, Masks({"weight": mask}), torch.ones(inputs))
    times = uses if uses > 0 else 3
    assert (found.dense_macs, found.macs) == (times * seen.numel(), times * int(seen.sum()))
    assert cost(model, Masks({"weight": torch.zeros_like(mask)}), torch.ones(inputs)).macs == 0


def test_a_product_of_two_weights_saves_what_either_loses() -> None:
    class Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a @ self.b) * x

    model = Low()
    masks = Masks({n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters()})
    kept = sum(int(masks["a"][i, k] & masks["b"][k, j]) for i, k, j in product(range(3), range(4), range(5)))
    found = cost(model, masks, torch.ones(()))
    assert (found.dense_macs, found.macs) == (60, kept)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(4, 5, batch_first=True), 6 * (4 * 5 * 4 + 4 * 5 * 5)),
        (nn.LSTM(4, 5, num_layers=2, bidirectional=True), 6 * (2 * 20 * 9 + 2 * 20 * 15)),
        (nn.LSTM(4, 6, proj_size=3), 6 * (24 * 4 + 24 * 3 + 3 * 6)),
        (nn.GRU(4, 5), 6 * (15 * 4 + 15 * 5)),
        (nn.RNN(4, 5), 6 * (5 * 4 + 5 * 5)),
    ],
    ids=str,
)
def test_recurrent_layers_count(layer: nn.Module, macs: int) -> None:
    """Every weight is used once a step; also where one kernel does it all."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]

    model, enabled = Last(), torch.backends.mkldnn.enabled
    masks = masks_of(model)
    found = cost(model, masks, torch.ones(2, 3, 4))
    assert (found.dense_macs, found.macs) == (macs, 6 * masks.kept)
    assert torch.backends.mkldnn.enabled == enabled


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm", "fallback"])
def test_experts_count_by_the_tokens_that_they_get(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    model.set_experts_implementation(implementation.replace("fallback", "grouped_mm"))
    if implementation == "fallback":
        monkeypatch.setattr("transformers.integrations.moe._can_use_grouped_mm", lambda *_: False)
    experts = model.model.layers[0].mlp.experts
    seen: list[Tensor] = []
    hook = experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    ids = torch.randint(20, (2, 7))
    model(ids)
    hook.remove()
    tokens = torch.bincount(seen[0].reshape(-1), minlength=4)
    parameters = prunable(model, include="*experts*")
    masks = Masks(
        {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.3 for n, p in parameters.items()}
    )
    whole, found = cost(model, None, {"input_ids": ids}), cost(model, masks, {"input_ids": ids})
    gone = sum(int((tokens * (~mask).sum((1, 2))).sum()) for mask in masks.values())
    used = int(tokens.sum()) * (2 * 12 * 8 + 8 * 12)
    others = (
        14 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 8 * 20 + 4 * 8) + 2 * 2 * 2 * 7 * 7 * 4
    )  # projections, head, router, scores
    assert whole.dense_macs == whole.macs == used + others
    assert found.dense_macs - found.macs == gone > 0


def test_attention_is_counted_in_eval_mode_too() -> None:
    """torch's fused path for inference hides its products from the counter; projections alone are 4·d²·tokens."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = dense(layer, torch.zeros(1, 5, 8))
    assert found.dense_macs >= 5 * (4 * 8 * 8 + 2 * 8 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("keys", [8, 6])
def test_attention_projections_count_as_masked(keys: int) -> None:
    """One weight in q, k, v (packed or apart) and out is used once a token; the products of activations stay."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=keys, vdim=keys, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            other = torch.zeros(2, 7, keys)
            return self.attention(x, other, other, need_weights=False)[0]

    model = Attention()
    x = torch.zeros(2, 5, 8)
    masks = masks_of(model)
    packed = keys == 8
    uses = {"q_proj": 10, "k_proj": 14, "v_proj": 14, "out_proj": 10}
    expected = 0
    for name, mask in masks.items():
        if packed and "in_proj" in name:
            parts = zip(("q_proj", "k_proj", "v_proj"), mask.chunk(3), strict=True)
            expected += sum(uses[part] * int(rows.sum()) for part, rows in parts)
        else:
            expected += next(count for part, count in uses.items() if part in name) * int(mask.sum())
    nothing = Masks({name: torch.zeros_like(mask) for name, mask in masks.items()})
    activations = cost(model, nothing, x).macs
    dense_projections = 10 * 8 * 8 * 2 + 14 * keys * 8 * 2
    assert activations == dense(model, x).dense_macs - dense_projections
    assert cost(model, masks, x).macs == expected + activations


@pytest.mark.parametrize("layout", ["channels_last", "slices of one vector"])
def test_macs_follow_the_memory_of_a_weight(layout: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 2))
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    else:
        flat = torch.randn(48)
        for layer, part in zip(model, flat.split(24), strict=True):
            layer.weight = nn.Parameter(part.view(layer.weight.shape))
    masks = masks_of(model)
    found = cost(model, masks, torch.zeros(1, 2, 5, 5))
    assert found.macs == 16 * int(masks["0.weight"].sum()) + 9 * int(masks["1.weight"].sum())


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[2].eval()
    before = [v.clone() for v in model.state_dict().values()]
    state = torch.get_rng_state()
    cost(model, masks_of(model), torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


def test_counting_leaves_no_trace_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        cost(model, masks_of(model), torch.zeros(1, 5))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(MaskError, match="made for this model") as caught:
        cost(nn.Linear(3, 2), masks_of(nn.Linear(2, 2)), torch.zeros(1, 3))
    assert "\n" not in str(caught.value)


def test_wrapped_model_costs_the_same() -> None:
    model = nn.Linear(4, 3)
    masks = masks_of(model)
    assert cost(nn.DataParallel(model), masks, torch.zeros(1, 4)) == cost(model, masks, torch.zeros(1, 4))


class Tied(nn.Module):
    """Embedding and head are one matrix; a norm with buffers; weights in two types; inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.inner = nn.Embedding(7, 4), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16()
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor, *, scale: Tensor) -> Tensor:
        x: Tensor = self.norm(self.embedding(words))
        return self.head(x + self.inner(x.bfloat16()).float()) * scale


def test_bytes_are_those_of_a_file_with_each_storage_once(tmp_path: Path) -> None:
    """A safetensors file is its header, whose length stands in its first eight bytes, and the tensors."""
    model = Tied()
    save_file({**dict(model.named_parameters()), **dict(model.named_buffers())}, tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    found = cost(model, None, {"words": torch.arange(3), "scale": torch.ones(())})
    assert found.stored_bytes == len(content) - 8 - int.from_bytes(content[:8], "little")
    assert found.stored_bytes == 4 * (28 + 4 * 4) + 2 * (16 + 4) + 8  # batches are counted in 64 bits
    assert found.macs == found.dense_macs == 3 * (16 + 28)
    assert found.kept == found.prunable == 16


def test_latency_is_of_a_pass_in_eval_mode_and_leaves_modes_alone():
    calls = []

    class Watched(nn.Linear):
        def forward(self, x):
            calls.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = Watched(4, 3).train()
    assert latency(model, torch.randn(2, 4), warmup=2, repeats=5) > 0
    assert calls == [(False, False)] * 7
    assert model.training


def test_latency_repeats_as_often_as_asked_and_as_long():
    model, calls = nn.Linear(4, 3), []
    model.register_forward_hook(lambda *_: calls.append(1))
    latency(model, torch.randn(2, 4), warmup=2, repeats=5)
    assert len(calls) == 7
    began = time.perf_counter()
    latency(model, torch.randn(2, 4), warmup=2, repeats=5, seconds=0.05)
    assert len(calls) > 14
    assert time.perf_counter() - began >= 0.05
