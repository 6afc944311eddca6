"""The network for lm-evaluation-harness against the harness's own."""

import json

import pytest
import torch

from experiments.evaluation.harness import harness_model
from tests.experiments.test_likelihoods import MODELS, model_of

lm_eval = pytest.importorskip("lm_eval")
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
Instance = pytest.importorskip("lm_eval.api.instance").Instance
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
tokenizers = pytest.importorskip("tokenizers")
PreTrainedTokenizerFast = pytest.importorskip("transformers").PreTrainedTokenizerFast
Network = harness_model()
SIGNS = [*"abcdefghijklmnopqrst", "_", "<e>", "<p>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a sign; 23 of them, as the models have."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({sign: number for number, sign in enumerate(SIGNS)}, unk_token="_")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="_", eos_token="<e>", pad_token="<p>")


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


SHOTS = "abc def\nbcd efg\ncde fgh\n"
CHOICES = [(SHOTS + question, answer) for question in ("def", "efghij", "abc") for answer in ("gh", "a", "b", "hij")]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shared", [True, False])
def test_its_numbers_are_those_of_the_harness(kind: str, shared: bool) -> None:
    model = model_of(kind)
    ours, theirs = Network(model, tokenizer(), 4, shared), HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=4)
    arguments = [*CHOICES, ("", "abc"), ("a" * 80, "bcd")]
    asked = [one.loglikelihood(requests("loglikelihood", arguments), disable_tqdm=True) for one in (ours, theirs)]
    for (total, greedy), (other, also) in zip(*asked, strict=True):
        assert total == pytest.approx(other, rel=1e-5)
        assert greedy == also
    texts = [("abcdefgh" * 3,), ("hgf",)]
    rolled = [one.loglikelihood_rolling(requests("loglikelihood_rolling", texts), True) for one in (ours, theirs)]
    assert rolled[0] == pytest.approx(rolled[1], rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_it_writes_what_the_model_writes_alone(kind: str) -> None:
    model = model_of(kind)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=1.0)
    options = {"until": ["_"], "max_gen_toks": 6}
    arguments = [(SHOTS + question, options) for question in ("def", "efghij", "abc", "abd")]
    found = Network(model, tokenizer(), 4).generate_until(requests("generate_until", arguments), disable_tqdm=True)
    for (context, _), text in zip(arguments, found, strict=True):
        ids = torch.tensor([tokenizer().encode(context)])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=22
        )
        wanted = tokenizer().decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == wanted.split("_")[0]
    assert len(set(found)) > 1


def test_a_task_from_local_files(tmp_path) -> None:
    items = [{"question": question, "answers": ["gh", "a"], "gold": 0} for question in ("def", "efg", "abc")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "letters.yaml").write_text(
        "task: letters\ndataset_path: json\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}}}\n"
        "test_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{gold}}'\ndoc_to_choice: '{{answers}}'\n"
        "metric_list: [{metric: acc}]\n"
    )
    model = Network(model_of("llama"), tokenizer(), 4)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=["letters"], task_manager=manager, bootstrap_iters=0)
    right = [
        model.loglikelihood(requests("loglikelihood", [(item["question"], f" {a}") for a in item["answers"]]), True)
        for item in items
    ]
    wanted = sum(first[0] > second[0] for first, second in right) / len(right)
    assert found["results"]["letters"]["acc,none"] == pytest.approx(wanted)
