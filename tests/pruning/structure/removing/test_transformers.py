"""Models of transformers after a removal: what transformers saves and loads is the same, or saving it is refused."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import StructureError
from pruning.structure import (
    Channels,
    Depth,
    Skip,
    find_blocks,
    load,
    remove,
    remove_,
    save,
    trace,
    verify,
)
from pruning.structure.choosing.channels import unit_masks
from tests.pruning.structure import families
from tests.pruning.structure.families import (
    EXPECTED,
    FAMILIES,
    NOTHING,
    REFUSED,
    REMOVED,
    SAME,
    WORDS,
    generates,
    logits,
    outcome,
    removal,
    tokens,
)

CASES = [(name, what, EXPECTED[name][i]) for name in FAMILIES for i, what in enumerate(REMOVED)]
OURS = "use pruning.structure.save"


def described(model):
    """The configuration, but for what saving writes into it."""
    return {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "dtype")}


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize(("name", "what", "expected"), CASES)
def test_what_is_loaded_is_the_same_or_saving_is_refused(name, what, expected, tmp_path):
    assert outcome(removal(name, what), tmp_path) == expected
    if expected == REFUSED:
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, what, expected in CASES if expected != NOTHING])
def test_sizes_that_differ_by_layer_are_refused_and_saved_by_our_own_function(name, what, tmp_path):
    case = removal(name, what, equal=False)
    small = case.small
    folder = tmp_path / "theirs"
    with pytest.raises(StructureError, match=OURS) as caught:
        small.save_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", FAMILIES[name]()).eval()
    assert torch.equal(logits(small, case.inputs), logits(again, case.inputs))
    with pytest.raises(StructureError, match=OURS):
        again.save_pretrained(folder)
    if generates(small):
        made = [tokens(model, case.inputs, cache) for model in (small, again) for cache in (True, False)]
        assert all(torch.equal(made[0], other) for other in made)


@pytest.mark.parametrize("what", ["heads", "inner width", "blocks"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("BERT", "ViT")])
def test_the_small_network_generates_what_the_masked_one_does(name, what):
    case = removal(name, what)
    masked = copy.deepcopy(case.model)
    case.masks.apply_(masked)
    expected = tokens(masked, case.inputs, cache=True)
    assert len(set(expected[0, -12:].tolist())) > 2  # not one word again and again
    small = case.small
    if name == "T5" and what == "blocks":  # parts of a layer, which stay as a `Skip`
        assert sum(isinstance(module, Skip) for module in small.modules()) == 1
    else:
        assert not any(isinstance(module, Skip) for module in small.modules())
    assert all(torch.equal(expected, tokens(small, case.inputs, cache)) for cache in (True, False))


@pytest.mark.parametrize(
    ("name", "what"), [(n, w) for n, w, expected in CASES if expected == SAME and "hidden" not in w]
)
def test_what_is_saved_by_us_is_loaded_into_the_original_and_saved_by_transformers(name, what, tmp_path):
    case = removal(name, what)
    small = case.small
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", FAMILIES[name]()).eval()
    assert torch.equal(logits(small, case.inputs), logits(again, case.inputs))
    if (name, what) == ("Gemma 3", "blocks"):  # what a layer may use is known by running it alone
        return
    again.save_pretrained(tmp_path / "theirs")
    third = type(again).from_pretrained(tmp_path / "theirs").eval()
    assert torch.equal(logits(small, case.inputs), logits(third, case.inputs))
    into = load(tmp_path / "small.safetensors", type(small)(small.config)).eval()  # built as it is now
    assert torch.equal(logits(small, case.inputs), logits(into, case.inputs))


@pytest.mark.parametrize("name", FAMILIES)
def test_in_place_is_as_a_copy(name, tmp_path):
    for what in ("inner width", "blocks"):
        case = removal(name, what)
        if case is None:
            continue
        small = case.small
        model = copy.deepcopy(case.model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        remove_(model, case.masks, case.structure, optimizer=optimizer)
        assert torch.equal(logits(model, case.inputs), logits(small, case.inputs))
        assert described(model) == described(small)
        assert list(model.state_dict()) == list(small.state_dict())
        assert len(optimizer.param_groups[0]["params"]) == len(list(small.parameters()))
        assert described(case.model) == described(families.built(name)[0])  # the original's stays


VALUES = {
    "GPT-2": ({"n_layer": 2}, {"n_inner": 64}, {}),
    "Llama": (
        {"num_hidden_layers": 2},
        {"intermediate_size": 20},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "Gemma 3": (
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "sliding_attention"]},
        {"intermediate_size": 20},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "OPT": ({"num_hidden_layers": 2}, {"ffn_dim": 20}, {}),
    "Mistral": (
        {"num_hidden_layers": 2},
        {"intermediate_size": 20},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "Qwen 3": (
        {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
        {"intermediate_size": 20},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "BERT": ({}, {"intermediate_size": 20}, {}),
    "T5": ({}, {"d_ff": 20}, {"num_heads": 2}),
    "ViT": ({"num_hidden_layers": 2}, {"intermediate_size": 20}, {"num_attention_heads": 2, "head_dim": 8}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_configuration_says_what_there_is_and_nothing_else_changes(name):
    before = described(families.built(name)[0])
    for what, changed in zip(("blocks", "inner width", "heads"), VALUES[name], strict=True):
        case = removal(name, what)
        if case is not None:
            config = described(case.small)
            if name == "GPT-2" and what == "inner width":
                assert before["n_inner"] is None
            assert config == before | changed, what


def test_blocks_are_renumbered():
    small = removal("Llama", "blocks").small
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    assert small.model.config.num_hidden_layers == small.config.num_hidden_layers == len(small.model.layers) == 2
    t5 = removal("T5", "inner width").small
    assert {module.config.d_ff for module in t5.modules() if hasattr(module, "config")} == {20}


def test_blocks_that_go_in_two_steps_are_found_again(tmp_path):
    model, inputs = families.built("Llama")
    for _ in range(2):
        shapes = {k: p.shape for k, p in model.named_parameters() if k.startswith("model.layers.0.")}
        structure = trace(model, inputs)
        masks = Masks({name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()})
        kept = model.model.layers[1]
        small = remove(model, masks, structure)
        assert verify(model, masks, small, inputs) <= 1e-5
        assert torch.equal(small.model.layers[0].mlp.up_proj.weight, kept.mlp.up_proj.weight)
        model = small
    assert len(model.model.layers) == 1
    save(model, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", FAMILIES["Llama"]()).eval()
    assert torch.equal(logits(model, inputs), logits(again, inputs))
    other = transformers.LlamaConfig(**{**families.GROUPED, "num_hidden_layers": 2})
    with pytest.raises(StructureError, match=r"model.layers: is no list of so many blocks"):
        load(tmp_path / "small.safetensors", transformers.LlamaForCausalLM(other))


def test_layers_that_scale_by_their_number_are_not_deleted(tmp_path):
    config = transformers.GPT2Config(
        **families.WORDS, n_positions=64, n_embd=32, n_layer=3, n_head=4, scale_attn_by_inverse_layer_idx=True
    )
    torch.manual_seed(0)
    model, inputs = transformers.GPT2LMHeadModel(config).eval(), {"input_ids": torch.randint(3, 50, (2, 7))}
    structure = trace(model, inputs)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.67, Depth(model, find_blocks(model, inputs)))
    small = remove(model, masks, structure)
    assert verify(model, masks, small, inputs) <= 1e-5
    assert [isinstance(block, Skip) for block in small.transformer.h].count(True) == 1
    gone = next(i for i, block in enumerate(small.transformer.h) if isinstance(block, Skip))
    if gone < 2:
        with pytest.raises(StructureError, match="blocks are gone that GPT2Config cannot leave out"):
            small.save_pretrained(tmp_path)


def test_a_number_of_heads_that_the_configuration_refuses_is_refused(tmp_path):
    """transformers wants the hidden size of a Llama to be a multiple of its number of heads."""
    model, inputs = families.built("Llama")
    structure = trace(model, inputs)
    heads = tuple(f.name for f in structure.families if f.kind == "heads")
    scores = scorers.random(Evidence(model, prunable(model)))
    granularity = Channels(
        structure, exclude=tuple(f.name for f in structure.families if f.name not in heads), equal=True
    )
    small = remove(model, prune(scores, 0.75, granularity), structure)
    assert small.model.layers[0].self_attn.q_proj.out_features == 24
    with pytest.raises(StructureError, match="no LlamaConfig describes it"):
        small.save_pretrained(tmp_path)


def test_equal_channels_of_a_budget_are_loaded_by_transformers(tmp_path):
    model, inputs = families.built("T5")
    structure = trace(model, inputs)
    scores = scorers.magnitude(Evidence(model, prunable(model)))
    equal = ("*Attention*", "*DenseReluDense*")  # one number for both stacks
    small = remove(model, prune(scores, 0.5, Channels(structure, normalise="mean", equal=equal)), structure)
    small.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["num_heads"], values["d_ff"], values["d_kv"]) == (2, 20, 6)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(small, inputs), logits(again, inputs))


def test_a_backbone_in_another_module_is_saved_or_refused_too(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = transformers.BertModel(
                transformers.BertConfig(vocab_size=50, **families.WIDTHS), add_pooling_layer=False
            )
            self.head = nn.Linear(32, 2)

        def forward(self, input_ids):
            return self.head(self.backbone(input_ids=input_ids).last_hidden_state)

    model, inputs = Reader().eval(), {"input_ids": torch.randint(3, 50, (2, 7))}
    structure = trace(model, inputs)
    inner = [family for family in structure.families if family.size == 40]
    small = remove(model, _halved(structure, inner), structure)
    small.backbone.save_pretrained(tmp_path / "equal")
    again = transformers.BertModel.from_pretrained(tmp_path / "equal", add_pooling_layer=False).eval()
    found = again(**inputs).last_hidden_state
    assert torch.equal(found, small.backbone(**inputs).last_hidden_state)
    small = remove(model, _halved(structure, inner[:1]), structure)
    for one in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small.backbone))):
        with pytest.raises(StructureError, match=OURS):
            getattr(one, "backbone", one).save_pretrained(tmp_path / "unequal")
    evened = remove(
        small, _halved(second := trace(small, inputs), [f for f in second.families if f.size == 40]), second
    )
    evened.backbone.save_pretrained(tmp_path / "again")  # now all are equal
    assert evened.backbone.config.intermediate_size == 20


def _halved(structure, chosen):
    kept = torch.ones(structure.size, dtype=torch.bool)
    for family in chosen:
        kept[family.first : family.first + family.size // 2] = False
    return Masks(unit_masks(structure, kept.numpy()))


def test_what_was_taken_out_or_put_in_by_hand_is_refused(tmp_path):
    """The configuration knows nothing of either: from_pretrained would fill up one, and leave out the other."""
    model, inputs = families.built("Llama")
    model.model.layers = model.model.layers[:2]
    structure = trace(model, inputs)
    small = remove(model, _halved(structure, [f for f in structure.families if f.size == 40]), structure)
    with pytest.raises(StructureError, match=r"layers.2.input_layernorm.weight is only in what it builds"):
        small.save_pretrained(tmp_path)
    model, inputs = families.built("Llama")
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj, nn.Linear(32, 32))
    structure = trace(model, inputs)
    small = remove(model, _halved(structure, [f for f in structure.families if f.size == 40]), structure)
    with pytest.raises(StructureError, match=r"layers.1.mlp.down_proj.0.weight is only in the model"):
        small.save_pretrained(tmp_path)


def test_a_number_that_was_changed_by_hand_stays_and_is_refused(tmp_path):
    """It may matter to inputs that are longer than the examples."""
    model, inputs = families.built("Gemma 3")
    model.model.layers[0].self_attn.sliding_window = 9
    structure = trace(model, inputs)
    small = remove(model, _halved(structure, [f for f in structure.families if f.size == 40]), structure)
    assert small.model.layers[0].self_attn.sliding_window == 9
    with pytest.raises(StructureError, match=r"sliding_window is 9, not 4"):
        small.save_pretrained(tmp_path)


def test_nothing_is_asked_of_a_model_of_which_nothing_goes(tmp_path):
    model, inputs = families.built("GPT-2")
    structure = trace(model, inputs)
    small = remove(model, Masks.dense(dict(model.named_parameters())), structure)
    small.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path).eval(), inputs), logits(small, inputs))


def test_a_configuration_that_lies_is_found_out(tmp_path, monkeypatch):
    """The test above can fail: with a configuration of other sizes transformers loads random weights, or fails."""
    monkeypatch.setattr("pruning.structure.removing.remove.settle_", lambda *_, **__: {})
    removal.cache_clear()
    assert outcome(removal("Llama", "blocks"), tmp_path) == "OTHER VALUES"
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched"):
        outcome(removal("Llama", "inner width"), tmp_path / "other")
    removal.cache_clear()


@pytest.mark.parametrize(("what", "expected"), [("inner width", SAME), ("hidden size and heads", REFUSED)])
def test_tables_that_no_file_has_are_those_that_the_configuration_makes(what, expected, tmp_path):
    """The sines of XGLM's positions are others of another hidden size, and its file does not hold them."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64}
    model = transformers.XGLMForCausalLM(transformers.XGLMConfig(**WORDS, **sizes, scale_embedding=False)).eval()
    inputs = {"input_ids": torch.randint(3, 50, (2, 7))}
    structure = trace(model, inputs, lossy=True)
    kept = np.ones(structure.size, bool)
    for family in structure.families:
        gone = {40: 10} if what == "inner width" else {32: 8, 4: 1}  # units; 24 features are three heads of eight
        kept[family.first : family.first + gone.get(family.size, 0)] = False
    small = remove(model, unit_masks(structure, kept), structure, lossy=True)
    if expected == REFUSED:
        with pytest.raises(StructureError, match=r"model\.embed_positions\.weights has other values"):
            small.save_pretrained(tmp_path)
        return
    small.save_pretrained(tmp_path)
    again = transformers.XGLMForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(small.eval(), inputs), logits(again, inputs))
