"""Block by block: the same inputs, masks and weights as by running the whole model again for every block."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as t
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import PerRow
from pruning.errors import CoverageWarning, MaskError, ParameterError, ScoreError, SequenceError
from pruning.inputs import arguments, tensors_in
from pruning.parameters import kernels
from pruning.recovery import compensate, compensate_bias
from pruning.sequential import blocks, sequentially
from pruning.sweep import sweep

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
LLAMA = SMALL | {"num_key_value_heads": 1, "max_position_embeddings": 32}


def ids(count: int = 2, length: int = 7) -> list[dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        tokens = torch.randint(40, (count, length), generator=noise)
        mask = torch.ones_like(tokens)
        mask[0, -2:] = 0
        found.append({"input_ids": tokens, "attention_mask": mask})
    return found


def t5() -> tuple[nn.Module, list]:
    config = t.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.1)
    batches = [b | {"decoder_input_ids": b["input_ids"][:, :4]} for b in ids()]
    return t.T5ForConditionalGeneration(config), batches


def vit() -> tuple[nn.Module, list]:
    config = t.ViTConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=8,
                         patch_size=4)  # fmt: skip
    noise = torch.Generator().manual_seed(1)
    return t.ViTModel(config), [torch.randn(2, 3, 8, 8, generator=noise) for _ in range(3)]


MODELS: dict[str, Callable[[], tuple[nn.Module, list]]] = {
    "gpt2": lambda: (t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2)), ids()),
    "llama": lambda: (t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)), ids()),
    "gemma3": lambda: (t.Gemma3ForCausalLM(t.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])), ids()),
    "opt": lambda: (t.OPTForCausalLM(t.OPTConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, ffn_dim=24,
        num_attention_heads=2, max_position_embeddings=32, word_embed_proj_dim=16)), ids()),
    "bert": lambda: (t.BertModel(t.BertConfig(**SMALL)), ids()),
    "t5": t5,
    "vit": vit,
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    model, batches = MODELS[name]()
    return model.double().eval(), [
        b.double() if isinstance(b, Tensor) and b.is_floating_point() else b for b in batches
    ]


def entered(model: nn.Module, name: str, batches: list) -> list[list[Tensor]]:
    """By the definition: the tensors that a block gets when the whole model runs."""
    seen: list[list[Tensor]] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([x.clone() for x in tensors_in((args, kwargs))]), with_kwargs=True
    )
    with torch.no_grad():
        for batch in batches:
            args, kwargs = arguments(batch)
            model(*args, **(kwargs | ({"use_cache": False} if "input_ids" in kwargs else {})))
    hook.remove()
    return seen


def wanda(evidence: Evidence) -> Masks:
    return prune(scorers.wanda(evidence), 0.5, allocation=PerRow())


@pytest.mark.parametrize("name", MODELS)
def test_each_block_gets_what_the_whole_pruned_model_would_give_it(name):
    model, batches = made(name)
    names = iter(blocks(model))
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def step(evidence: Evidence) -> Masks:
        here = next(names)
        for call, tensors in zip(evidence.batches, entered(model, here, batches), strict=True):
            for found, expected in zip(tensors_in((call["args"], call["kwargs"])), tensors, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        return wanda(evidence)

    masks = sequentially(model, batches, step)
    assert next(names, None) is None
    assert {key.split(".")[-1] for key in masks} == {"weight"}
    assert masks.density == pytest.approx(0.5, abs=0.03)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key] * masks[key] if key in masks else state[key]), key


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_nothing_pruned_gives_the_scores_of_the_whole_model(name):
    model, batches = made(name)
    found = {}

    def step(evidence: Evidence) -> Masks:
        found.update({f"{len(found)} {key}": value for key, value in scorers.wanda(evidence).items()})
        return Masks.dense(evidence.parameters)

    masks = sequentially(model, batches, step)
    chosen = {key: dict(model.named_parameters())[key] for key in masks}
    whole = scorers.wanda(Evidence(model, chosen, batches, lambda m, b: m(**b).logits))
    for value, expected in zip(found.values(), whole.values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_compensated_weights_are_those_by_the_whole_model_run_again_for_every_block(name):
    def step(evidence: Evidence) -> Masks:
        masks = prune(scorers.obs(evidence), 0.5, allocation=PerRow())
        compensate(evidence, masks)
        return masks

    model, batches = made(name)
    sequentially(model, batches, step)
    other, _ = made(name)
    for block in blocks(other):
        inside = {f"{block}.{key}": p for key, p in kernels(other.get_submodule(block)).items()}
        step(Evidence(other, inside, batches, lambda m, b: m(**b, use_cache=False).logits))
    for (key, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9, msg=key)


class Skipping(nn.Module):
    """A U: the last block also reads what the first one gave."""

    def __init__(self, plain: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        second = self.layers[1](first)
        return self.layers[2](second if self.plain else second + first)


def test_what_does_not_run_block_by_block_is_refused_by_name():
    batches = [torch.randn(2, 4)]
    with pytest.raises(SequenceError, match=r"layers.2: gets NaN"):
        sequentially(Skipping(), batches, wanda)
    with pytest.raises(SequenceError, match=r"runs the blocks layers.0, layers.1, layers.2: name"):
        sequentially(Skipping(True), batches, wanda, names=["layers.1", "layers.0", "layers.2"])
    with pytest.raises(SequenceError, match="no list of blocks"):
        blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(SequenceError, match="there are 0 batches"):
        sequentially(Skipping(True), [], wanda)
    with pytest.raises(SequenceError, match="there are 0 batches"):
        sequentially(Skipping(True), iter([*batches, *batches]), wanda)
    shared = Skipping(True)
    shared.layers[2] = shared.layers[0]
    with pytest.raises(SequenceError, match=r"layers.0, layers.1, layers.0: name"):
        sequentially(shared, batches, wanda, names=["layers.0", "layers.1"])
    idle = Skipping(True)
    idle.layers.append(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    with pytest.raises(SequenceError, match=r"runs the blocks layers.0, layers.1, layers.2: name"):
        sequentially(idle, batches, wanda)
    model = Skipping(True)
    with pytest.raises(SequenceError, match=r"head.weight: is in no block"):
        sequentially(model, batches, wanda, parameters={"head.weight": nn.Parameter(torch.ones(2, 2))})
    assert all("forward" not in block.__dict__ for block in (*shared.layers, *idle.layers, *model.layers))


def test_earlier_masks_stay_and_only_chosen_parameters_are_pruned():
    model = Skipping(True)
    batches = [torch.randn(8, 4)]
    first = sequentially(model, batches, lambda e: prune(scorers.magnitude(e), 0.5, allocation=PerRow()))
    second = sequentially(
        model, batches, lambda e: prune(scorers.wanda(e), 0.25, allocation=PerRow(), within=e.masks), masks=first
    )
    assert second.density == 0.25
    assert all(bool((mask <= first[name]).all()) for name, mask in second.items())
    some = {name: p for name, p in model.named_parameters() if name.startswith("layers.1")}
    assert list(sequentially(model, batches, wanda, parameters={"layers.1.0.weight": some["layers.1.0.weight"]})) == [
        "layers.1.0.weight"
    ]


def test_what_step_gives_no_masks_of_stays_whole():
    model, batches, seen = Skipping(True), [torch.randn(8, 4)], []

    def step(evidence: Evidence) -> Masks | dict:
        seen.append(evidence.block)
        return wanda(evidence) if evidence.block == "layers.1" else {}

    masks = sequentially(model, batches, step)
    assert seen == ["layers.0", "layers.1", "layers.2"]
    assert [float(masks[f"layers.{n}.0.weight"].double().mean()) for n in range(3)] == [1.0, 0.5, 1.0]
    first = sequentially(model, batches, wanda)
    assert sequentially(model, batches, lambda _: {}, masks=first) == first
    with pytest.raises(MaskError, match=r"layers\.0\.1\.weight: step gives masks of it, and it is not among"):
        sequentially(model, batches, lambda _: {"1.weight": torch.ones(4, 4, dtype=torch.bool)})


def test_errors_name_the_block_and_its_cause():
    batches = [torch.randn(8, 4)]
    with pytest.raises(ScoreError, match=r"layers\.0: a block has no loss of its own: take a scorer of weights"):
        sequentially(Skipping(True), batches, lambda e: prune(scorers.taylor(e), 0.5))
    for scorer in (scorers.fisher, scorers.movement, scorers.obd):
        with pytest.raises(ScoreError, match=r"layers\.0: a block has no loss of its own"):
            sequentially(Skipping(True), batches, lambda e, scorer=scorer: prune(scorer(e), 0.5))
    with pytest.raises(ScoreError, match=r"layers\.0\.0\.weight: 16 of 16 scores are NaN"):
        sequentially(Skipping(True), batches, lambda e: prune({"0.weight": torch.full((4, 4), torch.nan)}, 0.5))
    damaged = Skipping(True)
    damaged.layers[1][0].weight.data[0, 0] = torch.nan
    with pytest.raises(SequenceError, match=r"layers\.1: its outputs have NaN: check its weights"):
        sequentially(damaged, batches, lambda _: {})


def test_frozen_weights_are_pruned_where_they_are_named():
    model, batches = Skipping(True).requires_grad_(False), [torch.randn(8, 4)]
    assert blocks(model) == ("layers.0", "layers.1", "layers.2")
    with pytest.raises(ParameterError, match=r"layers\.0: has no weight that may be pruned, or only frozen ones"):
        sequentially(model, batches, wanda)
    masks = sequentially(model, batches, wanda, parameters=prunable(model, frozen=True))
    assert masks.density == 0.5
    assert masks.agree(model)


class Shuffled:
    """Another order each time, as of a loader that shuffles."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        self.batches = self.batches[1:] + self.batches[:1]
        return iter(self.batches)


def test_batches_that_change_from_block_to_block_are_refused():
    batches = [torch.randn(3, 4) for _ in range(3)]
    with pytest.raises(SequenceError, match=r"layers\.1: batches are others than for the block before"):
        sequentially(Skipping(True), Shuffled(batches), wanda)
    grown = [batches[0]]

    def step(evidence: Evidence) -> Masks:
        grown.append(batches[1])
        return wanda(evidence)

    with pytest.raises(SequenceError, match=r"layers\.1: batches are others"):
        sequentially(Skipping(True), grown, step)


def test_only_what_is_prunable_of_the_whole_model_is_pruned_in_its_blocks():
    class Tied(Skipping):
        def __init__(self):
            super().__init__(True)
            self.embedding = nn.Embedding(4, 4)
            self.embedding.weight = self.layers[1][0].weight  # an embedding counts as one wherever it is used

    masks = sequentially(Tied(), [torch.randn(8, 4)], wanda)
    assert "layers.1.0.weight" not in masks
    assert masks.density == 0.5
    shared = Skipping(True)
    shared.layers[2][0].weight = shared.layers[0][0].weight
    with pytest.raises(SequenceError, match=r"layers\.2\.0\.weight: is tied to a weight of layers\.0"):
        sequentially(shared, [torch.randn(8, 4)], wanda)
    with pytest.raises(ParameterError, match=r"layers\.1\.9\.weight: the model has no such parameter"):
        sequentially(
            Skipping(True), [torch.randn(8, 4)], wanda, parameters={"layers.1.9.weight": shared.layers[1][0].weight}
        )
    wide = Skipping(True)
    wide.head = nn.Linear(30, 30)
    with pytest.warns(
        CoverageWarning, match=r"Skipping: only \d+\.\d% of what may be pruned lies in its blocks layers\.0"
    ):
        sequentially(wide, [torch.randn(8, 4)], wanda)


def test_masks_hold_in_blocks_that_are_not_pruned():
    model, x = Skipping(True), torch.randn(8, 4)
    masks = prune(scorers.random(Evidence(model, {n: p for n, p in prunable(model).items() if "layers" in n})), 0.5)
    seen = []
    some = {"layers.2.0.weight": model.layers[2][0].weight}
    sequentially(
        model, [x], lambda e: seen.append(e.batches[0]["args"][0]) or wanda(e) & e.masks, parameters=some, masks=masks
    )
    assert Masks({n: m for n, m in masks.items() if "layers.2" not in n}).agree(model)
    assert torch.equal(seen[0], model.layers[1](model.layers[0](x)))


def test_blocks_in_named_lists_and_encoders_with_padding():
    torch.manual_seed(0)
    named = nn.Sequential()
    for number in range(3):
        named.add_module(f"encoder_layer_{number}", nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    assert blocks(named) == tuple(f"encoder_layer_{number}" for number in range(3))
    assert sequentially(named, [torch.randn(8, 4)], wanda).density == 0.5
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 3:] = True
    chosen = prunable(encoder, include="*linear*weight")
    masks = sequentially(encoder, [{"src": torch.randn(3, 5, 8), "src_key_padding_mask": padding}], wanda, None, chosen)
    assert masks.density == 0.5


# What the stand-ins would hide


class Layers(nn.Module):
    """Three blocks, between which `between(model, number, x, outputs)` stands."""

    def __init__(self, between=None, block=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([(block or Plain)() for _ in range(3)])
        self.register_buffer("calls", torch.zeros(()))
        self.between = between or (lambda model, number, x, outputs: x)

    def forward(self, x):
        outputs = []
        for number, layer in enumerate(self.layers):
            x = self.between(self, number, x, outputs)
            outputs.append(layer(x))
            x = outputs[-1]
        return x


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.two(torch.relu(self.one(x)))


@dataclass
class Out:
    h: Tensor


class Boxed(Plain):
    def forward(self, x):
        return Out(super().forward(x.h if isinstance(x, Out) else x))


class Writing(Plain):
    def forward(self, x):
        return super().forward(x.mul_(2))


def counted(model, number, x, outputs):
    if number == 0:
        model.calls += 1
    return x * model.calls


HIDDEN = {
    "a condition on an earlier block": lambda m, n, x, o: torch.where(o[0] > 0, x, -x) if n == 2 else x,
    "an index by an earlier block": lambda m, n, x, o: x + o[0].argmax() if n == 2 else x,
    "a count of passes": counted,
}


def seen_and_given(model, batches):
    """The inputs of each block as its step sees them, and in the finished pruned model."""
    seen, given = [], []

    def step(evidence):
        seen.append(
            [tensor.clone() for call in evidence.batches for tensor in tensors_in((call["args"], call["kwargs"]))]
        )
        return prune(scorers.magnitude(evidence), 0.5)

    sequentially(model, batches, step, names=[f"layers.{n}" for n in range(3)])
    for layer in model.layers:
        found = []
        layer.register_forward_pre_hook(
            lambda _, args, found=found: found.extend(t.clone() for t in tensors_in(args)), prepend=True
        )
        given.append(found)
    for batch in batches:
        model(batch.clone())
    return seen, given


class Added(Layers):
    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("name", [*HIDDEN, "a block that writes into its input"])
def test_what_stand_ins_would_hide_is_refused_before_anything_changes(name):
    model = Layers(HIDDEN[name]) if name in HIDDEN else Added(block=Writing)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with pytest.raises(
        SequenceError, match=r"gets other inputs where the blocks before it do not run|gets NaN|decides"
    ):
        sequentially(model, [torch.randn(3, 4)], lambda e: prune(scorers.magnitude(e), 0.5))
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["plain", "dataclass", "hooks", "model that writes"])
def test_blocks_see_what_the_finished_model_gives_them(kind):
    changing = {
        "dataclass": lambda m, n, x, o: Out(x.h.add_(1)) if isinstance(x, Out) else x,
        "model that writes": lambda m, n, x, o: x.div_(2) if n == 0 else x,
    }
    model = Layers(changing.get(kind), Boxed if kind == "dataclass" else None)
    if kind == "hooks":
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
            layer.register_forward_hook(lambda _, args, out: out * 1.5)
    batches = [torch.randn(3, 4), torch.randn(2, 4)]
    before = [batch.clone() for batch in batches]
    seen, given = seen_and_given(model, batches)
    assert all(torch.equal(batch, was) for batch, was in zip(batches, before, strict=True))
    for one, other in zip(seen, given, strict=True):
        assert len(one) == len(other) == 2
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_masks_that_hold_already_hold_in_blocks_and_cannot_be_undone():
    model = Layers()
    names = list(prunable(model))
    within = Masks({name: torch.rand(4, 4) < 0.7 for name in names})
    found = sequentially(
        model, [torch.randn(3, 4)], lambda e: prune(scorers.magnitude(e), 0.4, within=e.masks), masks=within
    )
    assert all(bool((found[name] <= within[name]).all()) for name in names)
    assert found.agree(model)
    with pytest.raises(MaskError, match=r"layers\.0\.one\.weight: step keeps weights that masks= removed"):
        sequentially(Layers(), [torch.randn(3, 4)], lambda e: Masks.dense(e.parameters), masks=within)
    with pytest.raises(MaskError, match=r"layers\.1\.one\.weight: is not in masks="):
        sequentially(Layers(), [torch.randn(3, 4)], lambda e: e.masks, masks={n: within[n] for n in names[:2]})


@pytest.mark.parametrize("remove", [compensate, compensate_bias, sweep])
def test_compensation_does_not_bring_back_what_was_removed(remove):
    model = Layers()
    within = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.5)
    within.apply_(model)
    case = Evidence(model, prunable(model), [torch.randn(9, 4)], lambda m, b: m(b).square().mean(), within)
    with pytest.raises(MaskError, match=r"masks keep what evidence\.masks has removed"):
        remove(case, Masks.dense(prunable(model)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": "layers.0"}, "names='layers.0': give a list"),
        ({"names": []}, "give a list of names"),
        ({"names": ["layers.9"]}, "names: .layers.9. is no module of the model"),
        ({"step": lambda e: None}, "step returned a NoneType: return masks"),
        ({"batches": iter([torch.randn(3, 4)])}, "iterated again for each block"),
    ],
)
def test_what_cannot_be_called_so_is_one_line(options, words):
    given = {"batches": [torch.randn(3, 4)], "step": lambda e: prune(scorers.magnitude(e), 0.5)} | options
    with pytest.raises(SequenceError, match=words) as caught:
        sequentially(Layers(), **given)
    assert "\n" not in str(caught.value)


def test_a_cache_asked_for_by_the_batches_is_not_kept():
    options = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    found = []
    for more in ({}, {"use_cache": True}):
        torch.manual_seed(0)
        model = t.LlamaForCausalLM(t.LlamaConfig(**options, intermediate_size=24)).eval()
        batches = [{"input_ids": torch.arange(24).view(2, 12), **more}]
        found.append(sequentially(model, batches, lambda e: prune(scorers.wanda(e), 0.5)))
    assert found[0] == found[1]


@dataclass
class Nothing:
    pass


class Carried(Layers):
    """Hands its stream on in an object that nobody looks into."""

    def forward(self, x):
        for layer in self.layers:
            carrier = Nothing()
            carrier.h = x
            x = layer(x, carrier) if self.between else layer(carrier)
        return x


class Carrying(Plain):
    def forward(self, x, carrier=None):
        return super().forward(x.h if isinstance(x, Nothing) else carrier.h)


def test_streams_that_are_not_seen_and_modes_that_forbid_it_are_refused():
    batches = [torch.randn(3, 4)]
    with pytest.raises(SequenceError, match="gets a Nothing with tensors in its attributes"):
        sequentially(Carried(lambda *_: None, Carrying), batches, wanda)
    with pytest.raises(SequenceError, match="gets a Nothing with tensors in its attributes"):
        sequentially(Carried(None, Carrying), batches, wanda)
    with torch.inference_mode(), pytest.raises(SequenceError, match="inference_mode"):
        sequentially(Skipping(True), batches, wanda)
    with pytest.raises(SequenceError, match=r"names: layers\.0 holds another"):
        sequentially(Skipping(True), batches, wanda, names=["layers.0", "layers.0.0"])


@pytest.mark.parametrize("decide", ["argsort", "argmax", "condition"])
def test_decisions_by_what_does_not_run_again_are_refused_in_later_batches_too(decide):
    def between(model, number, x, outputs):
        if number != 2 or len(x) == 1:
            return x
        if decide == "argsort":
            return x[outputs[0].mean(1).argsort()]
        if decide == "argmax":
            return x + outputs[0].mean(1).argmax()
        return x + 1 if outputs[0].mean() > 0 else x

    with pytest.raises(SequenceError, match=r"layers\.2: the model decides by outputs of blocks before the last one"):
        sequentially(Layers(between), [torch.randn(1, 4), torch.randn(5, 4)], wanda)


class Filling(nn.Module):
    """Fills gaps of its inputs, which are NaN, before its blocks, as forecasters do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        x = torch.where(x.isnan(), torch.zeros_like(x), x)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_may_look_for_nan_in_its_inputs():
    gaps = torch.randn(8, 4)
    gaps[2, 1] = torch.nan
    for batches in ([gaps], [torch.randn(8, 4)], [torch.randn(1, 4), gaps]):
        assert sequentially(Filling(), batches, wanda).density == 0.5
