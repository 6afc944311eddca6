"""A training that is rewound repeats itself bit for bit; and of each recovery, what is reset and what is not."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from pruning import prunable, prune, scorers, snapshot
from pruning.errors import ArtefactError, RewindError
from pruning.evidence import Evidence
from pruning.rewind import RewindPoint, step_of

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "adam": partial(Adam, lr=0.01, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=2),
}
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "step": partial(StepLR, step_size=3, gamma=0.5),
    "cosine": partial(CosineAnnealingLR, T_max=12),
}


class Training:
    """Everything that a rewind point holds: batch norm, dropout, momentum, schedule, shuffled data."""

    def __init__(self, optimizer: str = "momentum", schedule: str = "step"):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
        self.inputs, self.targets = torch.randn(30, 4), torch.randint(3, (30,))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = SCHEDULES[schedule](self.optimizer)
        self.order = torch.Generator().manual_seed(1)
        self.steps = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            chosen = torch.randperm(30, generator=self.order)[:10]

            def closure(chosen: Tensor = chosen) -> Tensor:
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(self.inputs[chosen]), self.targets[chosen])
                loss.backward()
                return loss

            self.optimizer.step(closure)
            self.schedule.step()
            self.steps += 1

    def capture(self) -> RewindPoint:
        return RewindPoint.capture(self.model, self.optimizer, self.schedule, self.order, self.steps)

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "order": self.order,
        }

    def state(self) -> dict[str, Any]:
        tree = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "lr": self.rate}
        return copy.deepcopy(tree)

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(np.array_equal(one, two))


@pytest.mark.parametrize("through", ["memory", "file"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rewound_training_repeats_itself_bit_for_bit(
    tmp_path: Path, optimizer: str, schedule: str, through: str
) -> None:
    training = Training(optimizer, schedule)
    training.run(4)
    point = training.capture()
    training.run(5)
    once = training.state()
    training.run(2)
    if through == "file":
        point.save(tmp_path / "point")
        point = RewindPoint.load(tmp_path / "point")
    for _ in range(2):  # restoring does not use a point up
        point.restore(**training.parts(), random=True)
        assert not same(training.state(), once)
        training.run(5)
        assert same(training.state(), once)
    fresh = Training(optimizer, schedule)  # as in another process
    point.restore(**fresh.parts(), random=True)
    fresh.run(5)
    assert same(fresh.state(), once)


@pytest.mark.parametrize("missing", ["model", "optimizer", "schedule", "order", "random"])
def test_every_part_of_a_point_is_needed(missing: str) -> None:
    """Else the test above could not fail."""
    training = Training()
    training.run(4)
    point = training.capture()
    training.run(5)
    once = training.state()
    point.restore(**training.parts() | ({missing: None} if missing != "random" else {}), random=missing != "random")
    training.run(5)
    assert not same(training.state(), once)


def test_a_point_shares_nothing_with_the_training() -> None:
    training = Training()
    training.run(2)
    point = training.capture()
    before = copy.deepcopy(point)
    training.run(3)
    point.restore(**training.parts(), random=True)
    training.run(1)
    assert same(point.__dict__, before.__dict__)


def pruned(training: Training) -> Any:
    return prune(scorers.magnitude(Evidence(training.model, prunable(training.model))), 0.5)


def test_rewind_resets_weights_statistics_momentum_and_schedule_under_the_masks() -> None:
    training = Training()
    training.run(3)
    point, before = training.capture(), training.state()
    training.run(6)
    masks = pruned(training)
    point.restore(training.model, training.optimizer, training.schedule)
    assert same(training.state(), before)
    with masks.attach(training.model, training.optimizer):
        for name, mask in masks.items():
            weight = training.model.get_parameter(name).detach()
            assert torch.equal(weight, before["model"][name] * mask)
            assert torch.equal(
                training.optimizer.state[training.model.get_parameter(name)]["momentum_buffer"],
                momentum(before, training, name) * mask,
            )


def momentum(state: dict[str, Any], training: Training, name: str) -> Tensor:
    number = [other for other, _ in training.model.named_parameters()].index(name)
    return state["optimizer"]["state"][number]["momentum_buffer"]


def test_learning_rate_rewinding_resets_the_schedule_and_nothing_else() -> None:
    training = Training()
    training.run(2)
    point, rate = training.capture(), training.rate
    training.run(6)
    before = training.state()
    assert before["lr"] != rate
    training.optimizer = OPTIMIZERS["momentum"](training.model.parameters())  # the old state ends with its round
    training.schedule = SCHEDULES["step"](training.optimizer)
    point.restore(schedule=training.schedule)
    assert training.rate == rate
    assert same(training.model.state_dict(), before["model"])
    assert not training.optimizer.state
    training.run(1)
    assert training.rate == 0.05  # step 3 of the schedule halves it


def test_fine_tuning_resets_nothing_but_the_optimizer() -> None:
    training = Training()
    training.run(8)
    before = training.state()
    optimizer = OPTIMIZERS["momentum"](training.model.parameters(), lr=before["lr"])
    with pruned(training).attach(training.model, optimizer):
        assert not optimizer.state
        assert optimizer.param_groups[0]["lr"] == before["lr"]
        for name, buffer in training.model.named_buffers():
            assert torch.equal(buffer, before["model"][name])


def test_what_a_point_lacks_or_does_not_fit_is_refused() -> None:
    training = Training()
    weights = RewindPoint.capture(training.model)
    for name, part in list(training.parts().items())[1:]:
        with pytest.raises(RewindError, match=f"holds no {name}: give"):
            weights.restore(**{name: part})
    with pytest.raises(RewindError, match="another training") as caught:
        weights.restore(nn.Linear(2, 2))
    assert "\n" not in str(caught.value)
    other = Training("adam")
    other.model.add_module("more", nn.Linear(3, 3))
    with pytest.raises(RewindError, match="another training"):
        RewindPoint.capture(training.model, Adam([nn.Parameter(torch.zeros(1))] * 1)).restore(optimizer=other.optimizer)
    with pytest.raises(RewindError, match="step=-1"):
        RewindPoint.capture(training.model, step=-1)


def test_a_snapshot_of_something_else_is_no_point(tmp_path: Path) -> None:
    snapshot.save(tmp_path / "file", {"step": 3})
    with pytest.raises(ArtefactError, match="not of a rewind point"):
        RewindPoint.load(tmp_path / "file")


def test_moments() -> None:
    assert [step_of(moment, 60) for moment in ("500it", "2ep", "0ep", 7, 0)] == [500, 120, 0, 7, 0]
    for bad in ("500", "2 ep", "-1it", "1.5ep", "", -1, 2.0, True, None):
        with pytest.raises(RewindError, match="names no step: give"):
            step_of(bad, 60)
