"""What a training trains, and by which optimizer: all weights, some of them, or what an adaptation has attached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.training.recipe import Recipe
from pruning import prunable
from pruning.errors import ConfigurationError

if TYPE_CHECKING:
    from experiments.adaptation import Attached

Adapt = Callable[[nn.Module], "Attached"]
"""Attaches an adaptation to a model: see `experiments.adaptation`."""


def begun(model: nn.Module, recipe: Recipe, adapt: Adapt | None) -> tuple[nn.Module, Attached | None, Optimizer]:
    """The model that is called, what is attached to it, and the optimizer of what is trained."""
    if adapt is None:
        return model, None, optimizer_of(recipe, trainable(model, recipe))
    adapted = adapt(model)
    return adapted.model, adapted, check_adapted(recipe, adapted)


def check_adapted(recipe: Recipe, adapted: Attached) -> Optimizer:
    """The optimizer of what is attached, which follows it. Raises one-line errors where it cannot be."""
    optimizer = optimizer_of(recipe, list(adapted.parameters()), adapted)
    adapted.follow(optimizer)
    return optimizer


def has_gradients(model: nn.Module) -> bool:
    """Whether any parameter gets a gradient that is its own, and not left to a sparse update."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    return any(p.requires_grad and name not in ignored for name, p in model.named_parameters())


def trainable(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """What a training without an adaptation trains; all other parameters get no gradient."""
    if recipe.trainable is None:
        return [p for p in model.parameters() if p.requires_grad]
    chosen = list(prunable(model, include=list(recipe.trainable)).values())
    kept = set(map(id, chosen))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    return chosen


def start_training(model: nn.Module, whole: bool) -> None:
    """Put `model` in training mode. Where it is not trained as a `whole`, batch norms of which nothing is trained keep
    their statistics: a frozen network stays what it is.
    """
    model.train()
    if whole or all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and not any(p.requires_grad for p in module.parameters()):
            module.eval()


def state_bytes(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of the tensors that an optimizer keeps of these parameters."""
    states = (optimizer.state.get(parameter, {}) for parameter in parameters)
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def optimizer_of(recipe: Recipe, trained: Sequence[nn.Parameter], adapted: Attached | None = None) -> Optimizer:
    """The recipe's optimizer; what an adaptation trains of its own has its own rate."""
    groups: Any = list(trained)
    if adapted is not None:
        parts = [(adapted.own().values(), adapted.rate), (adapted.dense.values(), adapted.dense_rate)]
        groups = [
            {"params": list(parameters), **({} if rate is None else {"lr": rate})}
            for parameters, rate in parts
            if parameters
        ]
    try:
        return recipe.optimizer(groups)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"optimizer: {error}: check its options") from error
