"""Likelihoods with shared beginnings against one forward pass a text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation import likelihoods as module
from experiments.evaluation.likelihoods import Likelihood, Text, likelihoods

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "llama": SIZES,
    "gemma3_text": {**SIZES, "sliding_window": 8},
    "qwen3": SIZES,
    "gpt2": {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": SIZES,
}


def model_of(kind: str):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def alone(model, text: Text) -> Likelihood:
    rows = model(input_ids=torch.tensor([text.tokens])).logits[0].log_softmax(-1)
    judged = range(text.start, len(text.tokens))
    total = sum(float(rows[place - 1, text.tokens[place]]) for place in judged)
    return Likelihood(total, all(int(rows[place - 1].argmax()) == text.tokens[place] for place in judged))


def few_shot(shots: int = 3, items: int = 5) -> list[Text]:
    draw = torch.Generator().manual_seed(1)
    beginnings = [torch.randint(23, (9 * shots,), generator=draw).tolist() for _ in range(2)]
    texts = []
    for item in range(items):
        question = torch.randint(23, (3 + item,), generator=draw).tolist()
        for choice in range(3):
            answer = torch.randint(23, (1 + choice,), generator=draw).tolist()
            context = [*beginnings[item % 2], *question]
            texts.append(Text((*context, *answer), len(context)))
    alike = [Text((*texts[0].tokens[:-1], token), texts[0].start) for token in range(3)]
    return [*texts, Text((4, 5), 1), texts[0], *alike, Text(texts[0].tokens, texts[0].start - 2)]


@pytest.mark.parametrize("kind", MODELS)
def test_they_are_those_of_one_forward_pass_a_text(kind: str) -> None:
    model, texts = model_of(kind), few_shot()
    wanted = [alone(model, text) for text in texts]
    for shared in (True, False):
        found = likelihoods(model, texts, batch=4, shared=shared)
        assert [one.greedy for one in found] == [one.greedy for one in wanted]
        assert [one.total for one in found] == pytest.approx([one.total for one in wanted], rel=1e-5)
    assert likelihoods(model, []) == []


def test_a_shared_beginning_is_read_once(monkeypatch) -> None:
    model, texts, seen = model_of("llama"), few_shot(shots=4, items=8), []
    model.register_forward_pre_hook(lambda _, __, named: seen.append(named["input_ids"].numel()), with_kwargs=True)
    likelihoods(model, texts, shared=False)
    plain, seen[:] = sum(seen), []
    likelihoods(model, texts)
    assert 3 * sum(seen) < plain
    assert sum(count > 30 for count in seen) >= 2


TOKENS = st.lists(st.integers(0, 2), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(TOKENS.flatmap(lambda t: st.integers(1, len(t) - 1).map(lambda s: Text(tuple(t), s))), max_size=8))
def test_groups_hold_every_text_once_and_share_what_is_said(texts: list[Text]) -> None:
    texts = sorted(texts, key=lambda text: text.tokens)
    asked = [[text] for text in texts]
    groups = list(module._groups(asked, list(range(len(texts)))))
    assert sorted(number for group in groups for number in group) == list(range(len(texts)))
    for group in groups:
        shared = module._common([asked[number] for number in group])
        assert len({texts[number].tokens[:shared] for number in group}) == 1
        assert all(shared < texts[number].start for number in group)
