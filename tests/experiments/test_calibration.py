"""Block by block in a run: its masks and weights are those that the library gives, and its rows are of them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiments import run as app
from experiments.data.examples import take
from experiments.running import stages
from experiments.running.setting import Setting
from experiments.store import Store
from experiments.store.networks import load
from experiments.store.retrieval import masks_of, network_of
from experiments.tasks import Classification
from pruning import Masks, prunable, prune, scorers
from pruning.allocation import NofM, PerRow
from pruning.errors import ConfigurationError, ScoreError
from pruning.owl import owl_densities
from pruning.sequential import sequentially
from pruning.sweep import sweep
from tests.experiments.running import configured


class Block(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.wide, self.back = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(torch.relu(self.wide(x)))


class Stack(nn.Module):
    def __init__(self, depth: int = 2, size: int = 8):
        super().__init__()
        self.first = nn.Linear(64, size)
        self.blocks = nn.ModuleList([Block(size) for _ in range(depth)])
        self.last = nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


MODEL = {"_target_": f"{__name__}.Stack", "depth": 2, "size": 8}
INSIDE = (
    "exclude=[first*,last*]",
    "scoring.examples=60",
    "scoring.batch_size=20",
    "recovery.epochs=0",
    "density=[0.5]",
)
SEQUENTIAL = (*INSIDE, "calibration=sequential", "allocation=per_row")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


def made(folder, *overrides: str) -> tuple[Setting, list[dict]]:
    """The rows of a run of the stack; the dense network is shared."""
    config = replace(configured(f"store={folder}/store", *overrides), model=MODEL)
    setting = Setting(config, Store(folder / "store"))
    return setting, app.run(setting, folder / "run", "name")


def network(folder, row: dict) -> tuple[nn.Module, Masks]:
    found = masks_of(row, folder / "store")
    assert found is not None
    return network_of(row, Stack(), folder / "store"), found


def by_library(setting: Setting, step) -> tuple[nn.Module, Masks]:
    """The dense network of a run, pruned block by block with the examples that the run saw."""
    model = load(Stack(), stages.dense(setting))
    examples = setting.splits.train
    chosen = torch.randperm(len(examples), generator=stages.scoring.generator(setting.config.seed, "scoring"))[:60]
    batches = [examples["inputs"][some] for some in chosen.split(20)]
    return model, sequentially(model, batches, step, parameters=prunable(model, exclude=["first*", "last*"]))


STEPS = {
    "wanda": (["scorer=wanda"], lambda e: prune(scorers.wanda(e), 0.5, allocation=PerRow())),
    "sweep of given masks": (
        ["scorer=wanda", "compensate=sweep"],
        lambda e: sweep(e, prune(scorers.wanda(e), 0.5, allocation=PerRow())),
    ),
    "SparseGPT": (
        ["scorer=obs", "compensate=sweep", "compensate.choose=block", "compensate.columns=4"],
        lambda e: sweep(e, prune(scorers.obs(e), 0.5, allocation=PerRow()), "block", 4),
    ),
    "SparseGPT 2:4": (
        [
            *("scorer=obs", "compensate=sweep", "compensate.choose=4"),
            *("allocation=n_of_m", "allocation.n=2", "allocation.m=4", "density=null"),
        ],
        lambda e: sweep(e, prune(scorers.obs(e), None, allocation=NofM(2, 4)), 4),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_masks_and_weights_are_those_of_the_library(folder, name):
    options, step = STEPS[name]
    setting, rows = made(folder, *SEQUENTIAL, *options)
    model, masks = network(folder, rows[-1])
    expected, expected_masks = by_library(setting, step)
    assert masks == expected_masks
    assert rows[-1]["density"] == masks.density == 0.5
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert masks.agree(model)
    test = setting.splits.test
    right = (model(test["inputs"]).argmax(1) == test["targets"]).double().mean()
    assert rows[-1]["test_accuracy"] == pytest.approx(float(right), abs=1e-9)


def test_later_blocks_see_what_the_pruned_ones_give(folder):
    """So their masks differ from those of the whole network, and the first block's do not."""
    options = [option for option in SEQUENTIAL if not option.startswith("calibration")]
    (_, whole), (_, block) = (
        made(folder, *options, "scorer=wanda", *more) for more in ([], ["calibration=sequential"])
    )
    assert whole[-1]["network"] != block[-1]["network"]
    one, other = (network(folder, rows[-1])[1] for rows in (whole, block))
    same = {name: torch.equal(one[name], other[name]) for name in one}
    assert same["blocks.0.wide.weight"]
    assert not same["blocks.1.wide.weight"]


def test_rounds_go_on_within_masks_and_what_is_trained_stays_within_them(folder):
    rounds = ["schedule=exponential", "schedule.rounds=2", "recovery=finetune", "recovery.epochs=1"]
    _, rows = made(
        folder, *SEQUENTIAL, "scorer=obs", "compensate=sweep", "compensate.choose=row", "density=[0.25]", *rounds
    )
    (_, first), (model, second) = (network(folder, row) for row in rows[1:])
    assert (first.density, second.density) == (0.5, 0.25)
    assert all(bool((second[name] <= first[name]).all()) for name in first)
    assert second.agree(model)
    assert rows[2]["epochs"] == 1


def test_owl_gives_blocks_the_densities_of_the_whole_networks_scores(folder):
    options = ["scorer=wanda", "allocation=owl", "allocation.multiple=2", "allocation.spread=0.1"]
    setting, rows = made(folder, *SEQUENTIAL, *options)
    _, masks = network(folder, rows[-1])
    scores = stages.score(setting, stages.dense(setting))
    for name, share in owl_densities(scores, 0.5, 2.0, 0.1).items():
        rows_of = masks[name].flatten(1)
        assert rows_of.sum(1).unique().tolist() == [round(share * rows_of.shape[1])]
    assert len({masks[name].double().mean().item() for name in masks}) > 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["allocation=global"], "allocation=Global: shares a density out among all layers"),
        (["allocation=erk"], "allocation=ERK: .*choose uniform, per_row"),
        (["controls=[shuffle]"], "controls=shuffle"),
        (["scoring.mode=train"], r"scoring\.mode=eval"),
        (["granularity=channels", "allocation=uniform"], "calibration=whole"),
        (["dynamic=gradual", "recovery.epochs=1"], "calibration=sequential: nothing is pruned"),
        (["calibration=whole", "compensate=sweep", "compensate.choose=row"], r"compensate\.choose=row: .*sequential"),
        (["compensate=sweep", "compensate.choose=foo"], r"compensate\.choose=foo: give given, block"),
        (["compensate=sweep", "compensate.choose=8"], r"compensate\.choose=8: masks would not be those of the alloc"),
        (["exclude=[last*]"], r"first\.weight: is in no block: set exclude=\[first\.weight\]"),
    ],
)
def test_what_does_not_go_block_by_block_is_refused(folder, more, words):
    with pytest.raises(ConfigurationError, match=words):
        made(folder, *SEQUENTIAL, "scorer=wanda", *more)


@pytest.mark.parametrize(
    "options",
    [
        ["scorer=taylor"],
        ["scorer=magnitude", "compensate=block"],
        ["scorer=obs", "compensate=layer", "compensate.hessian.damping=-1"],
        ["scorer=magnitude", "compensate=sweep", "compensate.hessian.precision=float16"],
    ],
)
def test_what_cannot_be_asked_of_a_block_is_refused_before_training(tmp_path, options):
    with pytest.raises(ScoreError, match=r"^scorer=\w+, calibration=sequential: blocks\.0: [^:]+"):
        made(tmp_path, *SEQUENTIAL, *options)
    assert not (tmp_path / "store" / "dense").exists()


@pytest.mark.parametrize("options", [SEQUENTIAL, INSIDE])
def test_that_the_training_diverged_is_said_where_nothing_can_be_scored(tmp_path, options):
    with pytest.raises(ScoreError, match=r"^training diverged at step \d+, so that nothing can be scored: .* \("):
        made(tmp_path, *options, "scorer=wanda", "optimizer=sgd", "optimizer.lr=1e30")


def test_a_network_without_blocks_is_refused(folder):
    setting = Setting(configured(*SEQUENTIAL, "scorer=wanda", "exclude=null"), Store(folder / "store"))
    setting = replace(setting, whole=replace(setting.whole, model={"_target_": f"{__name__}.flat"}))
    with pytest.raises(ConfigurationError, match="calibration=sequential: Sequential has no blocks: set it to whole"):
        app.run(setting, folder / "run", "name")


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_first_examples_are_those_of_the_draw(folder):
    """Two seeds see other calibration data, which the key holds."""
    (one, _), (other, _) = (made(folder, *SEQUENTIAL, "scorer=wanda", f"seed={seed}") for seed in (0, 1))
    first, second = (next(iter(stages.scoring.seen_batches(setting)))["inputs"] for setting in (one, other))
    assert first.shape == second.shape == take(one.splits.train, 20)["inputs"].shape
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("wanda", ["scorer=magnitude"]),
        ("wanda", ["calibration=whole"]),
        ("wanda", ["allocation=uniform"]),
        ("sparsegpt", ["compensate.choose=row"]),
        ("sparsegpt", ["compensate=none"]),
        ("sparsegpt", ["compensate.columns=16"]),
        ("sparsegpt", ["compensate.hessian.damping=0.5"]),
        ("wanda", ["compensate=sweep"]),
        ("wanda", ["compensate=bias"]),
        ("wanda", ["scorer.norm=1"]),
        ("wanda", ["granularity=blocks"]),
        ("magnitude", ["calibration=sequential"]),
        ("sparsegpt_2of4", ["allocation.n=1"]),
    ],
)
def test_a_paper_names_what_it_chose_and_nothing_else(method, changed):
    assert configured(f"method={method}", "exclude=[first*]", "density=[0.4]" if "of" not in method else "density=null")
    with pytest.raises(ConfigurationError, match=rf"^method={method}: stands for {changed[0].partition('=')[0]}"):
        configured(f"method={method}", *changed)


def test_a_loss_of_whole_batches_is_not_cut_into_parts(folder):
    setting = Setting(configured("training.accumulate=2"), Store(folder / "store"))
    task = replace(setting, whole=replace(setting.whole, task={"_target_": f"{__name__}.Whole", "classes": 10}))
    with pytest.raises(ConfigurationError, match=r"^training\.accumulate=2: the loss of this task is of whole batches"):
        app.run(task, folder / "run", "name")


class Whole(Classification):
    additive = False
