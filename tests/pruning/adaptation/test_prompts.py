"""Prompts: what a model makes of them is what it makes of longer inputs, and they go without a trace."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.adaptation import Prompt
from pruning.errors import AdaptationError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_of(kind: str, auto: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    return getattr(transformers, auto).from_config(config).eval()


def tokens() -> dict[str, Tensor]:
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": torch.arange(21).view(3, 7) % 20, "attention_mask": mask}


@pytest.mark.parametrize(("kind", "auto"), [("bert", "AutoModel"), ("llama", "AutoModelForCausalLM")])
@pytest.mark.parametrize("called", ["tokens by name", "tokens by position", "states"])
@torch.no_grad()
def test_it_is_a_longer_input_of_which_the_beginning_is_left_out(kind: str, auto: str, called: str) -> None:
    model, batch = model_of(kind, auto), tokens()
    embedded = model.get_input_embeddings()(batch["input_ids"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    prompt = Prompt(model, 4)
    (learned,) = prompt.parameters()
    own = "prompt" if kind == "bert" else "model.prompt"
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {own}
    if called == "tokens by position":
        found = model(batch["input_ids"], batch["attention_mask"])[0]
    else:
        given = {"inputs_embeds": embedded} if called == "states" else {"input_ids": batch["input_ids"]}
        found = model(**given, attention_mask=batch["attention_mask"])[0]
    prompt.detach()
    longer = torch.cat([learned.detach().expand(3, -1, -1), embedded], 1)
    mask = torch.cat([torch.ones(3, 4, dtype=torch.int64), batch["attention_mask"]], 1)
    want = model(inputs_embeds=longer, attention_mask=mask)[0][:, 4:]
    assert torch.equal(found, want)
    assert dict.fromkeys(before, True) == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert model(**batch)[0].shape == found.shape


def test_it_is_pefts_on_a_decoder() -> None:
    peft = pytest.importorskip("peft")
    batch, model = tokens(), model_of("llama", "AutoModelForCausalLM")
    theirs = peft.get_peft_model(
        model_of("llama", "AutoModelForCausalLM"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    prompt = Prompt(model, 3)
    (learned,) = prompt.parameters()
    with torch.no_grad():
        learned.copy_(theirs.prompt_encoder["default"].embedding.weight)
        assert torch.allclose(model(**batch).logits, theirs(**batch).logits[:, 3:], atol=1e-6)


def test_it_begins_among_the_words_of_the_model_by_its_seed() -> None:
    model = model_of("bert", "AutoModel")
    table = model.get_input_embeddings().weight
    found = []
    for seed in (0, 0, 1):
        prompt = Prompt(model, 5, seed)
        (learned,) = prompt.parameters()
        assert all(any(torch.equal(row, word) for word in table) for row in learned)
        found.append(learned.detach().clone())
        prompt.detach()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_it_trains_alone_and_towards_what_is_asked() -> None:
    """A prompt that is to be found again: outputs of the same frozen model with it are the targets."""
    model, batch = model_of("bert", "AutoModel"), tokens()
    wanted = Prompt(model, 3, seed=1)
    with torch.no_grad():
        targets = model(**batch).last_hidden_state
    wanted.detach()
    before = {name: p.clone() for name, p in model.named_parameters()}
    prompt = Prompt(model, 3, seed=0)
    optimizer = torch.optim.Adam(prompt.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(**batch).last_hidden_state, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    prompt.detach()
    assert losses[-1] < 0.1 * losses[0]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def called(**given: Any) -> None:
    model = model_of("bert", "AutoModel")
    Prompt(model, 3)
    model(**{"input_ids": torch.ones(2, 3, dtype=torch.int64), **given})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompt(model_of("bert", "AutoModel"), 0), "give at least 1"),
        (lambda: Prompt(torch.nn.Linear(2, 2), 3), "has no model of transformers"),
        (lambda: Prompt(model_of("t5", "AutoModelForSeq2SeqLM"), 3), "has two parts"),
        (lambda: Prompt(model_of("vit", "AutoModel"), 3), "takes no inputs_embeds"),
        (lambda: called(attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]])), "padding before the text"),
        (lambda: called(attention_mask=torch.ones(2, 1, 3, 3)), "several dimensions"),
        (lambda: called(return_dict=False), "return_dict=False is given"),
        (lambda: called(encoder_hidden_states=torch.ones(2, 3, 16)), "encoder_hidden_states is given"),
        (lambda: called(input_ids=torch.ones(2, 511, dtype=torch.int64)), "more than the 512"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(AdaptationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_two_at_once_are_refused() -> None:
    model = model_of("bert", "AutoModel")
    Prompt(model, 2)
    with pytest.raises(AdaptationError, match="has a prompt already"):
        Prompt(model, 2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_padding_changes_no_class_and_no_loss(kind: str) -> None:
    """Heads that read the last token, or the first, find it where it is without a prompt."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES, pad_token_id=0, num_labels=3)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    prompt = Prompt(model, 4)
    (learned,) = prompt.parameters()
    learned.data.normal_()
    text, labels = torch.tensor([[3, 4, 5]]), torch.tensor([1])
    padded = torch.tensor([[3, 4, 5, 0, 0]])
    with torch.no_grad():
        alone = model(text, attention_mask=torch.ones_like(text), labels=labels)
        found = model(padded, attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), labels=labels)
        torch.testing.assert_close(found.logits, alone.logits)
        torch.testing.assert_close(found.loss, alone.loss)
        learned.data.zero_()
        assert not torch.allclose(model(text, attention_mask=torch.ones_like(text)).logits, alone.logits)
    if kind == "bert":  # its pooler reads the first token, not the first position of the prompt
        states = model.bert(text, torch.ones_like(text), output_hidden_states=True)
        torch.testing.assert_close(states.pooler_output, model.bert.pooler(states.last_hidden_state))
        assert {one.shape[1] for one in states.hidden_states} == {3}


def test_a_language_model_has_its_loss_and_writes_on() -> None:
    model, ids = model_of("llama", "AutoModelForCausalLM"), torch.tensor([[3, 4, 5, 6]])
    prompt = Prompt(model, 4)
    with torch.no_grad():
        whole = model(ids, labels=ids)
        rows = whole.logits[0, :-1].log_softmax(-1)
        torch.testing.assert_close(whole.loss, -rows.gather(1, ids[0, 1:, None]).mean())
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole.logits[:, -2:])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
        written = model.generate(ids, **options, use_cache=False)
        for place in range(4, 7):
            assert written[0, place] == model(written[:, :place]).logits[0, -1].argmax()
        with pytest.raises(AdaptationError, match="use_cache=False"):
            model.generate(ids, **options)
    prompt.detach()


def test_a_copy_has_a_prompt_of_its_own() -> None:
    model, batch = model_of("bert", "AutoModel"), tokens()
    Prompt(model, 2)
    other = copy.deepcopy(model)
    other.prompt.data.zero_()
    assert not torch.allclose(model(**batch)[0], other(**batch)[0])
    other(**batch)[0].sum().backward()
    assert other.prompt.grad is not None
    assert model.prompt.grad is None
