"""Two processes that train one network in step: the same masks in both, and what one process alone would find."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.adaptation import Tuning
from pruning.adaptation.kept import KeptLinear
from pruning.allocation import ERK
from pruning.curvature import full_hessian
from pruning.dynamic import SET, FixedMasks, Gradual, Movement, Regime, RigL, SoftMask
from pruning.errors import ExecutionError
from pruning.evidence import Scores
from pruning.execution import Execution, dense_execution, sparse_execution
from pruning.execution import sparse as sparsely
from pruning.granularity import Vectors
from pruning.processes import average_, of_first_process, parallel
from pruning.recovery import compensate, compensate_bias

STEPS = 24
Found = dict[str, list[dict[str, Tensor]]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    return inputs, (inputs[:, :4] + 0.3 * inputs[:, 4:8]).argmax(1)


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def sparse(evidence: Evidence, seed: int = 16) -> Evidence:
    masks = prune(scorers.random(evidence, seed=seed), 0.3, allocation=ERK())
    return Evidence(evidence.model, evidence.parameters, evidence.batches, evidence.loss, masks=masks)


def shares() -> list[tuple[Tensor, Tensor]]:
    """Data to score with; the processes' shares differ in size."""
    return [(inputs[:size], targets[:size]) for size, (inputs, targets) in ((16, batch(1000)), (5, batch(1001)))]


SCORERS: dict[str, Callable[[Evidence], Scores]] = {
    "gradient": scorers.gradient,
    "taylor": scorers.taylor,
    "taylor before": partial(scorers.taylor, absolute="before"),
    "snip": scorers.snip,
    "grasp": scorers.grasp,
    "fisher": scorers.fisher,
    "obd": scorers.obd,
    "hutchinson": partial(scorers.obd, curvature="hutchinson", probes=3),
    "obs": scorers.obs,
    "obs, full": partial(scorers.obs, hessian=full_hessian),
    "woodfisher": scorers.woodfisher,
    "wanda": scorers.wanda,
}


def scored(name: str, wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int) -> Scores:
    """Scores from the share of a process, with all parameters as before."""
    model = wrap(network())
    before = copy.deepcopy(model.state_dict())
    found = SCORERS[name](Evidence(model, prunable(model), shares()[rank::processes], loss_of))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    return found


def compensated(how: str, wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int) -> dict[str, Tensor]:
    """Weights after a compensated removal."""
    model = network()
    evidence = Evidence(wrap(model), prunable(model), shares()[rank::processes], loss_of)
    masks = prune(scorers.magnitude(evidence), 0.5)
    (compensate if how == "weights" else compensate_bias)(evidence, masks)
    return {name: p.detach() for name, p in model.named_parameters()}


def attached(wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int) -> dict[str, Tensor]:
    """Weights after steps under masks of which every process brought others, first applied and then attached."""
    model = network()
    optimizer = Adam(model.parameters(), lr=0.02)
    wrapped = wrap(model)
    masks = prune(scorers.random(Evidence(model, prunable(model)), seed=rank), 0.3)
    masks.apply_(wrapped)
    with masks.attach(wrapped, optimizer):
        for step in range(3):
            inputs, targets = batch(step)
            optimizer.zero_grad()
            loss_of(wrapped, (inputs[rank::processes], targets[rank::processes])).backward()
            optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


Regime = Callable[[Evidence, Optimizer], Regime]
REGIMES: dict[str, Regime] = {
    "held": lambda e, o: FixedMasks(e.model, o, Masks(sparse(e, len(e.batches[0][1])).masks or {})),
    "set": lambda e, o: SET(sparse(e), o, steps=STEPS, every=4),
    "rigl": lambda e, o: RigL(sparse(e), o, steps=STEPS, every=4),
    "gradual": lambda e, o: Gradual(e, o, steps=STEPS, density=0.2, scorer=scorers.taylor, every=4, regrow=True),
    "movement": lambda e, o: Movement(e, o, steps=STEPS, density=0.3),
    "soft mask": lambda e, o: SoftMask(e, o, steps=STEPS, density=0.5, penalty=0.2, granularity=Vectors(1)),
}


def trained(make: Regime, wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int) -> list[dict[str, Tensor]]:
    """Masks and weights after every step; a process sees its share of every batch, and of the data for scores."""
    model = network()
    wrapped = wrap(model)
    optimizer = Adam(model.parameters(), lr=0.02)
    regime = make(Evidence(wrapped, prunable(wrapped), shares()[rank::processes], loss_of), optimizer)
    seen = []
    for step in range(STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss_of(wrapped, (inputs[rank::processes], targets[rank::processes])).backward()
        regime.before_step()
        optimizer.step()
        regime.after_step()
        masks = {f"mask {name}": mask.clone() for name, mask in regime.masks.items()}
        seen.append(copy.deepcopy(masks | {name: p.detach() for name, p in model.named_parameters()}))
    regime.finish()
    return seen


def trained_sparsely(wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int) -> list[dict[str, Tensor]]:
    """Weights at the end of a training on the kept values, by a network that was made sparse before it was wrapped."""
    model = network()
    optimizer = Adam(model.parameters(), lr=0.02)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    assert len(sparse_execution(model, masks, optimizer)) == 2
    wrapped = wrap(model)
    for step in range(STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss_of(wrapped, (inputs[rank::processes], targets[rank::processes])).backward()
        optimizer.step()
    dense_execution(wrapped, optimizer)
    assert masks.agree(model)
    return [{name: p.detach() for name, p in model.named_parameters()}]


def tuned(wrap: Callable[[nn.Module], nn.Module], rank: int, processes: int, dense: str | None) -> dict[str, Tensor]:
    """Differences and weights after a training of a support, clipped and accumulated; without `dense` nobody wraps."""
    model = network()
    support = prune(scorers.random(Evidence(model, prunable(model, include="*"))), 0.08)
    if dense is not None:
        support = Masks({name: mask for name, mask in support.items() if not name.startswith("2.")})
    tuning = Tuning(model, support, dense)
    assert isinstance(model[0], KeptLinear)
    optimizer = Adam(tuning.parameters(), lr=0.02)
    tuning.follow(optimizer)
    wrapped = model if dense is None else wrap(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in (0, 1):
            inputs, targets = batch(2 * step + part)
            loss_of(wrapped, (inputs[rank::processes], targets[rank::processes])).backward()
        nn.utils.clip_grad_norm_(list(tuning.parameters()), 0.5)
        optimizer.step()
    found = {name: change.values for name, change in tuning.finish().changes.items()}
    return {f"d {name}": value for name, value in found.items()} | {n: p.detach() for n, p in model.named_parameters()}


def refusals() -> list[str]:
    """What is said to one who wraps first: new parameters would miss the averaging."""
    model = network()
    wrapped, optimizer = DistributedDataParallel(model), Adam(model.parameters())
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    before = copy.deepcopy(model.state_dict())
    found = []
    try:
        sparse_execution(wrapped, masks, optimizer)
    except ExecutionError as error:
        found.append(str(error))
    execution = Execution(FixedMasks(wrapped, optimizer, masks), sparsely, batch(0)[0])
    execution.ready()
    assert execution.layers is None
    assert all(
        torch.equal(value * masks.get(name, value > -9), model.state_dict()[name]) for name, value in before.items()
    )
    return found


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "compiled ddp": lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: Found = {name: trained(make, WRAPS["ddp"], rank, 2) for name, make in REGIMES.items()}
    found["compiled rigl"] = trained(REGIMES["rigl"], WRAPS["compiled ddp"], rank, 2)
    found["sparse"] = trained_sparsely(WRAPS["ddp"], rank, 2)
    found |= {f"scores {name}": [scored(name, WRAPS["ddp"], rank, 2)] for name in SCORERS}
    found |= {f"moved {how}": [compensated(how, WRAPS["ddp"], rank, 2)] for how in ("weights", "bias")}
    found["tuned"] = [tuned(WRAPS["ddp"], rank, 2, dense) for dense in (None, "2.*")]
    found["attached"] = [attached(WRAPS["ddp"], rank, 2)]
    (said,) = refusals()
    assert said.startswith("DistributedDataParallel: ")
    values = torch.full((3,), float(rank))
    average_(DistributedDataParallel(network()), [values])
    found["average"] = [{"values": values}]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    folder: Path = tmp_path_factory.mktemp("processes")
    spawn(work, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("name", [*REGIMES, "compiled rigl"])
def test_both_processes_hold_the_same_masks_and_find_what_one_would(both: tuple[Found, Found], name: str) -> None:
    alone = trained(REGIMES[name.removeprefix("compiled ")], lambda model: model, 0, 1)
    changes = set()
    for first, second, single in zip(both[0][name], both[1][name], alone, strict=True):
        assert first.keys() == second.keys() == single.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
            if key.startswith("mask"):
                assert torch.equal(value, single[key]), key
                changes.add((key, value.numpy().tobytes()))
            else:
                torch.testing.assert_close(value, single[key], rtol=0, atol=1e-9)
    assert len(changes) > 2 or name == "held", "the masks have changed"


def test_a_network_made_sparse_before_it_is_wrapped_trains_as_one_process_would(both: tuple[Found, Found]) -> None:
    alone = trained_sparsely(lambda model: model, 0, 1)
    for name, value in alone[0].items():
        assert torch.equal(both[0]["sparse"][0][name], both[1]["sparse"][0][name])
        torch.testing.assert_close(both[0]["sparse"][0][name], value, rtol=0, atol=1e-9)


def test_a_support_is_trained_as_one_process_would(both: tuple[Found, Found]) -> None:
    for number, dense in enumerate((None, "2.*")):
        alone = tuned(lambda model: model, 0, 1, dense)
        assert any(name.startswith("d ") and bool(value.any()) for name, value in alone.items())
        for name, value in alone.items():
            assert torch.equal(both[0]["tuned"][number][name], both[1]["tuned"][number][name]), name
            torch.testing.assert_close(both[0]["tuned"][number][name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_of_the_data_of_all_processes(both: tuple[Found, Found], name: str) -> None:
    alone = scored(name, lambda model: model, 0, 1)
    assert any(bool(score.any()) for score in alone.values())
    for key, value in alone.items():
        assert torch.equal(both[0][f"scores {name}"][0][key], both[1][f"scores {name}"][0][key])
        torch.testing.assert_close(both[0][f"scores {name}"][0][key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["weights", "bias"])
def test_compensations_are_of_the_data_of_all_processes(both: tuple[Found, Found], how: str) -> None:
    alone = compensated(how, lambda model: model, 0, 1)
    for key, value in alone.items():
        assert torch.equal(both[0][f"moved {how}"][0][key], both[1][f"moved {how}"][0][key])
        torch.testing.assert_close(both[0][f"moved {how}"][0][key], value, rtol=1e-9, atol=1e-12)


def test_masks_are_those_of_the_first_process_from_the_start(both: tuple[Found, Found]) -> None:
    alone = attached(lambda model: model, 0, 1)
    for key, value in alone.items():
        assert torch.equal(both[0]["attached"][0][key], both[1]["attached"][0][key])
        torch.testing.assert_close(both[0]["attached"][0][key], value, rtol=0, atol=1e-9)


def test_averages_are_over_the_processes(both: tuple[Found, Found]) -> None:
    for found in both:
        assert found["average"][0]["values"].tolist() == [0.5] * 3


def test_one_process_needs_nobody() -> None:
    model = network()
    assert parallel(model) is None
    values, masks = torch.ones(2), Masks.dense(prunable(model))
    average_(model, [values])
    assert values.tolist() == [1.0, 1.0]
    assert Masks(of_first_process(model, masks)) == masks
