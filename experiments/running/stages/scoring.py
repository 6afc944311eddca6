"""Scores of the weights of a network, and the examples that scorers see."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.configuration.targets import instantiate
from experiments.data import Batch, Data
from experiments.data.examples import Positions, take
from experiments.running.basis import Basis
from experiments.runtime.seeding import generator, seeded
from experiments.store.networks import Network, load
from experiments.tasks import counts, mean_loss
from pruning import Evidence, Masks
from pruning.errors import ScoreError, SequenceError
from pruning.evidence import Scores, with_layouts

Scoring = Callable[[Network], Scores]

SEEN = ("seed", "scoring", "data.load", "task", "include", "exclude")
"""Fields of the configuration that evidence depends on, besides the network."""

SCORED = (*SEEN, "scorer")
"""Fields of the configuration that scores depend on, besides the network."""


def score(setting: Basis, network: Network) -> Scores:
    """The scores of `network` under its masks, for the weights that may be pruned."""
    setting = setting.only(*SCORED, after=network.fields)
    scorer = instantiate("scorer", setting.config.scorer)
    evidence = evidence_of(setting, load(setting.new_model(), network), network.load_masks())
    with seeded(setting.config.seed, "scoring noise"):
        scores = scorer(evidence)
    check_scores(setting.config.scorer["_target_"], scores, evidence.parameters)
    return with_layouts(scores, evidence)  # also of a scorer that knows nothing of them


def check_scorer(setting: Basis, count: int = 4) -> None:
    """Score a few examples, so that a scorer which cannot do that for this model raises before hours of training.

    The network is the initial one; its weights are moved a little, unless they are to be scored as they are, as there
    are scorers of how far weights have come. Where nothing counts in these examples, nothing is checked.
    """
    setting = setting.only(*SCORED, "when", "model")
    model = setting.new_model()
    if setting.config.when == "trained":
        move(setting.prunable(model), setting.config.seed)
    scorer = instantiate("scorer", setting.config.scorer)
    evidence = evidence_of(setting, model, getattr(model, "starting_masks", None))
    try_scorer(setting, scorer, setting.config.scorer["_target_"], evidence, count)


def try_scorer(
    setting: Basis, scorer: Callable[[Evidence], Scores], name: str, evidence: Evidence, count: int = 4
) -> Scores:
    """The scores by `count` examples in the place of those of `evidence`; none where nothing counts in these."""
    few = take(setting.splits.train, count, setting.device)
    if evidence.count is not None and not evidence.count(few):
        return {}
    with seeded(setting.config.seed, "scoring noise"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four examples make a poor estimate
        scores = scorer(replace(evidence, batches=[few]))
    check_scores(name, scores, evidence.parameters)
    return scores


def move(parameters: Mapping[str, nn.Parameter], seed: int) -> None:
    """Move weights a little, as a training would."""
    with torch.no_grad(), seeded(seed, "check"):
        for parameter in parameters.values():
            parameter.mul_(1 + 0.01 * torch.rand_like(parameter))


def evidence_of(setting: Basis, model: nn.Module, masks: Masks | None) -> Evidence:
    """Evidence for scorers: `model` under `masks`, the examples, and the loss."""
    config, device = setting.config.scoring, setting.device
    model.to(device).train(config.mode == "train")
    task = setting.task
    loss, counted, batches = mean_loss(task), counts(task), seen_batches(setting)
    initial = setting.prunable(setting.new_model())
    alive = None if masks is None else masks.to(device)
    return Evidence(model, setting.prunable(model), batches, loss, alive, initial, counted)


def seen_batches(setting: Basis) -> Iterable[Batch]:
    """The batches that scorers see, on the device: a draw of the training part, a function of the seed."""
    config, examples = setting.config.scoring, setting.splits.train
    count = len(examples) if config.examples is None else min(config.examples, len(examples))
    chosen = torch.randperm(len(examples), generator=generator(setting.config.seed, "scoring"))[:count]
    return Reread(examples.to(setting.device), torch.split(chosen, config.batch_size), counts(setting.task))


@dataclass(frozen=True)
class Reread:
    """Batches that are read again whenever they are iterated: data need not fit in memory, and a model may write into
    what it gets.

    Those in which nothing counts, as where all labels are ignored, have no mean, and are left out.
    """

    data: Data
    chosen: Sequence[Positions]
    count: Callable[[Batch], float] | None = None

    def __iter__(self) -> Iterator[Batch]:
        batches = self.data.batches(self.chosen)
        return batches if self.count is None else (batch for batch in batches if self.count(batch))


@contextmanager
def divergence_named(network: Network) -> Iterator[None]:
    """Errors within, of scores or of inputs that are NaN, say that the training of `network` diverged, if it did."""
    try:
        yield
    except (ScoreError, SequenceError) as error:
        lost = network.history["diverged"]
        if lost is None:
            raise
        raise ScoreError(
            f"training diverged at step {lost}, so that nothing can be scored: lower optimizer.lr, or set "
            f"training.clip ({error})"
        ) from error


def check_scores(scorer: str, scores: Any, parameters: Mapping[str, Tensor]) -> None:
    """Raise `ScoreError` unless exactly the prunable tensors are scored: "density" counts these."""
    if not isinstance(scores, Mapping):
        raise ScoreError(f"{scorer}: returned a {type(scores).__name__}: return a dict, parameter name -> tensor")
    for name in sorted(scores.keys() ^ parameters.keys()):
        which = "no score for" if name in parameters else "a score for something that is not prunable:"
        raise ScoreError(f"{scorer}: {which} {name}: score exactly evidence.parameters, or set include and exclude")
    for name, score in scores.items():
        if not isinstance(score, Tensor) or score.shape != parameters[name].shape:
            what = f"shape {list(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ScoreError(
                f"{scorer}: the score of {name} has {what}: return a tensor of shape {list(parameters[name].shape)}"
            )
