"""Adapters and prefixes of our own: each against its formula, on models of transformers, and taken out again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.adaptation import Adapters, Prefixes
from pruning.errors import AdaptationError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("bert", **SIZES, **options)
    return transformers.AutoModel.from_config(config).eval()


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SIZES, num_key_value_heads=2)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokens() -> dict[str, Tensor]:
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": torch.arange(21).view(3, 7) % 20, "attention_mask": mask}


def randomise(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.normal_(generator=generator, std=0.3)


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("make", [bert, llama], ids=["bert", "llama"])
def test_adapters_add_their_formula_to_every_feed_forward_layer(make: Any, kind: Any) -> None:
    model = make()
    batch = tokens()
    before, trained = model(**batch)[0].detach(), [p.requires_grad for p in model.parameters()]
    adapters = Adapters(model, 3, kind, scale=0.5)
    assert torch.equal(model(**batch)[0], before)  # nothing at first
    count = sum(p.numel() for p in adapters.parameters())
    assert count == 2 * (2 * 3 * 16 + 3 + 16)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapters.parameters()}
    randomise(adapters.parameters())
    seen: list[tuple[str, Any]] = []
    layers = model.encoder.layer if make is bert else model.model.layers
    enter = layers[1].intermediate if make is bert else layers[1].mlp
    leave = layers[1].output.dense if make is bert else layers[1].mlp
    inner = leave if make is bert else layers[1].mlp.down_proj
    enter.register_forward_pre_hook(lambda _, args: seen.append(("x", args[0])))
    inner.register_forward_hook(lambda _, args, out: seen.append(("h", out)), prepend=True)
    leave.register_forward_hook(lambda _, args, out: seen.append(("out", out)))
    model(**batch)
    found = dict(seen)
    adapter = leave.adapter
    source = found["x"] if kind == "parallel" else found["h"]
    hidden = (source @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    wanted = found["h"] + 0.5 * (hidden @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(found["out"], wanted)
    assert any("adapter" in key for key in model.state_dict())
    adapters.detach()
    assert torch.equal(model(**batch)[0], before)
    assert not any("adapter" in key for key in model.state_dict())
    assert [p.requires_grad for p in model.parameters()] == trained


@pytest.mark.parametrize("padded", [True, False])
def test_prefixes_take_part_in_the_softmax(padded: bool) -> None:
    model = bert()
    batch = tokens() if padded else {"input_ids": tokens()["input_ids"]}
    before = model(**batch)[0].detach()
    prefixes = Prefixes(model, 5)
    assert sum(p.numel() for p in prefixes.parameters()) == 2 * 2 * 5 * 16
    randomise(prefixes.parameters())
    seen: list[tuple[Tensor, Tensor]] = []
    attention = model.encoder.layer[1].attention.self
    attention.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    model(**batch)
    ((x, found),) = seen
    heads = [layer(x).view(3, 7, 4, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)]
    q, k, v = heads
    learned = [p.view(5, 4, 4).transpose(0, 1)[None] for p in (attention.prefix.key, attention.prefix.value)]
    scores = torch.cat([q @ learned[0].mT, q @ k.mT], -1) / 2
    if padded:
        hidden = torch.cat([torch.zeros(3, 5), 1.0 - batch["attention_mask"]], 1).bool()[:, None, None]
        scores = scores.masked_fill(hidden, -torch.inf)
    share = scores.softmax(-1)
    wanted = share[..., :5] @ learned[1] + share[..., 5:] @ v
    torch.testing.assert_close(found, wanted.transpose(1, 2).reshape(3, 7, 16), atol=1e-5, rtol=1e-4)
    plain = (scores[..., 5:]).softmax(-1) @ v  # the functional view: a mean of the two
    weight = share[..., :5].sum(-1, keepdim=True)
    own = scores[..., :5].softmax(-1) @ learned[1]
    mean = ((1 - weight) * plain + weight * own).transpose(1, 2).reshape(3, 7, 16)
    torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-4)
    prefixes.detach()
    assert torch.equal(model(**batch)[0], before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["adapters", "prefixes"])
def test_training_moves_them_alone(kind: str) -> None:
    model = bert()
    names = set(model.state_dict())
    added = Adapters(model, 3) if kind == "adapters" else Prefixes(model, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(added.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**tokens())[0].square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in names)
    assert all(not torch.equal(after[name], before[name]) for name in after.keys() - names)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AdaptationError, match="no feed-forward layers are known"):
        Adapters(nn.Sequential(nn.Linear(2, 2)), 2)
    with pytest.raises(AdaptationError, match="tail: is no module"):
        Adapters(bert(), 2, where={"tail": "tail"})
    with pytest.raises(AdaptationError, match="bottleneck=0"):
        Adapters(bert(), 0)
    with pytest.raises(AdaptationError, match="activation='sin'"):
        Adapters(bert(), 1, activation="sin")
    whole = bert()
    with pytest.raises(AdaptationError, match=r"embeddings\.LayerNorm: has no linear layer"):
        Adapters(
            whole,
            2,
            where={"encoder.layer.0.output.dense": "encoder.layer.0.intermediate"}
            | {"embeddings.LayerNorm": "embeddings.LayerNorm"},
        )
    assert not any("adapter" in name for name in whole.state_dict())
    assert all(p.requires_grad for p in whole.parameters())
    model = bert()
    Adapters(model, 1)
    with pytest.raises(AdaptationError, match="has adapters already"):
        Adapters(model, 1)
    with pytest.raises(AdaptationError, match="has no self-attention with query"):
        Prefixes(llama(), 2)
    with pytest.raises(AdaptationError, match="is no encoder's"):
        Prefixes(bert(is_decoder=True), 2)
    with pytest.raises(AdaptationError, match="length=0"):
        Prefixes(bert(), 0)
    encoder = bert()
    Prefixes(encoder, 2)
    with pytest.raises(AdaptationError, match="has prefixes already"):
        Prefixes(encoder, 2)
