"""A model between its two forms: dense weights under masks, or only the values that masks keep.

Everything else stays where it is: biases, norms and layers that cannot run sparsely. Optimizers go along, with
what they remember of each weight, in both directions; nothing is rounded on the way.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from pruning.attachment import SEPARATE
from pruning.errors import ExecutionError
from pruning.execution.modules import Sparse, convertible, densify_, sparsify_
from pruning.execution.product import Pattern
from pruning.masks import Masks
from pruning.parameters import first_names, named, unwrapped, users_of, within
from pruning.processes import parallel


def candidates(model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names in `masks` whose weights can run sparsely: every module that has the weight is `convertible`.

    Not those of which another parameter has memory in common, as transposed tied weights do. A weight that is masked
    under several names is given under the first of these.
    """
    model = unwrapped(model)
    users, parameters = users_of(model), named(model)
    views: dict[object, set[int]] = {}
    for parameter in parameters.values():
        views.setdefault(_memory(parameter), set()).add(id(parameter))
    found: dict[int, str] = {}
    for name in masks:
        weight = parameters.get(name)
        if weight is None or len(views[_memory(weight)]) > 1:
            continue
        if all(attribute == "weight" and convertible(module) for module, attribute in users[id(weight)]):
            found.setdefault(id(weight), name)
    return tuple(found.values())


@torch.no_grad()
def sparse_execution(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *optimizers: Optimizer,
    layers: Collection[str] | None = None,
    row_major: bool = True,
) -> tuple[str, ...]:
    """Give layers of `model` only the weights that `masks` keep, in place; the names of those weights.

    A Linear or 1x1 convolution then computes with sparse products, and the vector of its kept values is its parameter
    instead of the weight: a removed weight does not exist, and optimizer state is as small. `state_dict()` is as
    before, with zeros where weights were removed. `dense_execution` undoes it.

    While it is sparse, `named_parameters()` has `values` where `weight` was, and reading `weight` gives a new tensor:
    what is written into that is lost. Lists of parameters (for clipping, for averages) and hooks on weights that were
    made before must be made again. There are no second derivatives, and `torch.func` does not apply. In eval mode
    `nn.TransformerEncoder` reads the weights of its layers itself, as slowly as dense ones and more, unless
    `torch.backends.mha.set_fastpath_enabled(False)`.

    Args:
        model: on the CPU for what is to run sparsely; wrappers are looked through, but wrap in DDP only afterwards.
        masks: name -> bool tensor. Weights that stay dense are to be held under their masks as ever:
            `Masks({n: m for n, m in masks.items() if n not in names}).attach(...)`.
        optimizers: updated to train the values, with the state that they had of them.
        layers: names of weights, among `candidates`; None: all of these. A mapping, as `auto` gives, says of each up
            to how many columns its products are MKL's CSR ones (`Pattern.few`); without one none are.
        row_major: outputs lie in memory as those of dense layers. False saves copies between layers; a `view` of an
            output may then be impossible, and `torch.nn.functional.dropout`, whose noise follows the layout, draws
            other noise; dropout modules make it row-major in any case.

    Raises:
        MaskError: the masks do not fit.
        ExecutionError: the model is wrapped in DDP; a layer in `layers` cannot run sparsely; an optimizer is of another
            model, or does not treat every weight by itself (LBFGS, Adafactor, one that is not of torch.optim): on a
            vector it would be another optimizer.
    """
    joined, first = Masks(masks).joined(model), first_names(model)
    possible = candidates(model, masks)
    chosen = possible if layers is None else tuple(layers)
    for name in chosen:
        if name not in possible:
            raise ExecutionError(f"{name}: cannot run sparsely (see candidates()): leave it out of layers")
    if chosen and parallel(model) is not None:
        raise ExecutionError(
            "DistributedDataParallel: would not average gradients of the kept values: make the network sparse first, "
            "and wrap it then"
        )
    if chosen:
        _check(optimizers, model)
    few = layers if isinstance(layers, Mapping) else {}
    parameters, users = named(model), users_of(unwrapped(model))
    row_major = row_major or any(isinstance(module, _DropoutNd) for module in model.modules())
    for name in chosen:
        weight = parameters[name]
        pattern = Pattern.of(joined[first[name]].flatten(1), few.get(name, 0))
        places = pattern.flat()
        values = nn.Parameter(weight.detach().reshape(-1)[places], requires_grad=weight.requires_grad)
        if weight.grad is not None:
            values.grad = weight.grad.reshape(-1)[places]
        for module, _ in users[id(weight)]:
            sparsify_(module, values, pattern, row_major=row_major)

        def gathered(state: Tensor, places: Tensor = places) -> Tensor:
            return state.reshape(-1)[places]

        _exchange(optimizers, weight, values, gathered)
        weight.grad = None
        weight.data = weight.new_empty(0)  # the object stays: regimes and evidence know it
    return chosen


@torch.no_grad()
def dense_execution(model: nn.Module, *optimizers: Optimizer) -> tuple[str, ...]:
    """Put dense weights back, zero where they were removed, in place; their names.

    Optimizers train the weights again, the same Parameter objects as before, with the state that the values had, zero
    for removed weights.
    """
    found = []
    for path, module in unwrapped(model).named_modules():
        if not isinstance(module, Sparse):
            continue
        values, weight = module.values, module.dense_weight
        if weight.shape != module.dense_shape:  # not yet put back for another layer that is tied to this one
            shape, places = module.dense_shape, module.pattern.flat()

            def spread(state: Tensor, shape: torch.Size = shape, places: Tensor = places) -> Tensor:
                return state.new_zeros(shape.numel()).index_copy_(0, places, state).view(shape)

            weight.data = spread(values.detach())
            weight.requires_grad_(values.requires_grad)
            weight.grad = None if values.grad is None else spread(values.grad)
            _exchange(optimizers, values, weight, spread)
            found.append(within(path, "weight"))
        densify_(module)
    return tuple(found)


def sparse_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The weights of `model` that run sparsely: name -> kept values, and all that there would be."""
    found = {}
    for path, module in unwrapped(model).named_modules():
        if isinstance(module, Sparse):
            found[within(path, "weight")] = (module.values.numel(), module.dense_shape.numel())
    return found


def _memory(parameter: Tensor) -> object:
    return parameter.untyped_storage().data_ptr() if parameter.numel() else id(parameter)


def _check(optimizers: Iterable[Optimizer], model: nn.Module) -> None:
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        if type(optimizer) not in SEPARATE:
            raise ExecutionError(
                f"{kind}: is not known to treat every weight by itself: set execution=masked, or take Adam or SGD of "
                "torch.optim"
            )
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ExecutionError(f"{kind}: updates no parameter of the model: give the optimizer of this model")


def _exchange(
    optimizers: Iterable[Optimizer], old: nn.Parameter, new: nn.Parameter, convert: Callable[[Tensor], Tensor]
) -> None:
    """Let every optimizer of `old` train `new`, with its state converted where that has the parameter's shape."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        if old in optimizer.state:
            optimizer.state[new] = {
                key: convert(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                for key, value in optimizer.state.pop(old).items()
            }
