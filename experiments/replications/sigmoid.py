"""Small networks of sigmoid units, trained to their minimum and pruned weight after weight, as around 1990."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.curvature import full_hessian
from pruning.recovery import compensate

DAMPING = 1e-4
"""H = JᵀJ/P + DAMPING·I; Hassibi & Stork 1993 start their recursion from H = 1e-8·I … 1e-4·I."""

METHODS = ("OBS", "OBD", "magnitude")


@dataclass(frozen=True)
class Problem:
    """Inputs [n, d] and targets [n, 1] of 0 and 1, float64, with what a network for them has: hidden units, decay."""

    inputs: Tensor
    targets: Tensor
    hidden: int
    decay: float

    def right(self, model: nn.Module) -> int:
        """The number of examples that `model` puts on their side of one half."""
        return int(((model(self.inputs) > 0.5) == (self.targets > 0.5)).sum())


class Sigmoids(nn.Module):
    """Hidden and output sigmoid units; biases are weights from a unit that is always 1, so they are pruned alike."""

    def __init__(self, inputs: int, hidden: int, seed: int):
        super().__init__()
        self.first = nn.Linear(inputs + 1, hidden, bias=False, dtype=torch.float64)
        self.second = nn.Linear(hidden + 1, 1, bias=False, dtype=torch.float64)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.rand(weight.shape, generator=draws, dtype=torch.float64) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.second(_with_one(torch.sigmoid(self.first(_with_one(x))))))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def half_squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """½ the mean squared error, without the decay: its Gauss-Newton matrix is JᵀJ/P."""
    return (model(batch[0]) - batch[1]).square().mean() / 2


def train(model: Sigmoids, problem: Problem, masks: Masks | None = None, steps: int = 1000) -> None:
    """Minimise mean squared error + ½ decay·‖w‖² by L-BFGS, in place; what `masks` removes stays 0."""
    kept = np.ones(sum(p.numel() for p in model.parameters()), dtype=bool)
    if masks is not None:
        kept = torch.cat([masks[name].reshape(-1) for name, _ in model.named_parameters()]).numpy()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
    x, t = _with_one(problem.inputs).numpy(), problem.targets.numpy()

    def objective(live: np.ndarray) -> tuple[float, np.ndarray]:
        weights[kept] = live
        value, slope = value_and_slope(weights, x, t, problem.hidden, problem.decay)
        return value, slope[kept]

    # by hand: thousands of trainings of a few dozen weights each would spend their time in autograd's bookkeeping
    found = minimize(objective, weights[kept], jac=True, method="L-BFGS-B", options={"maxiter": steps})
    weights[kept] = found.x
    weights[~kept] = 0.0
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), model.parameters())


def value_and_slope(
    weights: np.ndarray, x: np.ndarray, t: np.ndarray, hidden: int, decay: float
) -> tuple[float, np.ndarray]:
    """Mean squared error + ½ decay·‖w‖² of `Sigmoids` with these flat weights, and its gradient; x ends in a 1."""
    first, second = weights[: hidden * x.shape[1]].reshape(hidden, -1), weights[hidden * x.shape[1] :][None]
    h = np.hstack([expit(x @ first.T), np.ones((len(x), 1))])
    y = expit(h @ second.T)
    error = y - t
    back = 2 / len(x) * error * y * (1 - y)
    inner = (back @ second[:, :-1]) * h[:, :-1] * (1 - h[:, :-1])
    slope = np.concatenate([(inner.T @ x).reshape(-1), (back.T @ h).reshape(-1)])
    return float((error**2).mean() + decay / 2 * weights @ weights), slope + decay * weights


def without_one(model: Sigmoids, problem: Problem, method: str, masks: Masks) -> Masks:
    """`masks` less the weight that costs least by `method`, which `model` loses; in OBS the others make up for it."""
    evidence = Evidence(model, prunable(model), [(problem.inputs, problem.targets)], half_squared_error, masks)
    density = (masks.kept - 1) / masks.total
    if method != "OBS":
        scorer = {"OBD": scorers.obd, "magnitude": scorers.magnitude}[method]
        fewer = prune(scorer(evidence), density, within=masks)
        fewer.apply_(model)
        return fewer
    found = full_hessian(evidence, damping=DAMPING, relative=False)  # once, for the choice and for the update
    fewer = prune(scorers.obs(evidence, lambda _: found), density, within=masks)
    compensate(evidence, fewer, lambda _: found)
    return fewer


def smallest(model: Sigmoids, problem: Problem, method: str, enough: int, retrain: bool) -> tuple[Sigmoids, Masks]:
    """The network, and what it keeps, before one weight less leaves fewer than `enough` examples right."""
    masks = Masks.dense(prunable(model))
    found = deepcopy(model), masks
    while masks.kept > 1:
        model = deepcopy(model)
        masks = without_one(model, problem, method, masks)
        if retrain:
            train(model, problem, masks)
        if problem.right(model) < enough:
            break
        found = model, masks
    return found
