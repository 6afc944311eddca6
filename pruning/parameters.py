"""Which parameters may be pruned: names and storages, each storage once."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pruning.errors import CoverageWarning, ParameterError
from pruning.processes import parallel

Predicate = Callable[[str, nn.Parameter], bool]
Choice = str | Iterable[str] | Predicate

_KERNELS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable(
    model: nn.Module, include: Choice | None = None, exclude: Choice | None = None, *, frozen: bool = False
) -> dict[str, nn.Parameter]:
    """The parameters of `model` that pruning may touch, by name, in the model's order.

    Without `include` these are the weight matrices and kernels of Linear, Conv1-3d and their transposed forms,
    Bilinear, recurrent layers, attention in-projections, the Conv1D of transformers and experts that are stacked in
    one tensor: no biases, norms, embeddings or position tables. A tensor that an embedding shares with a linear layer
    counts as an embedding. Tied weights appear once, under the first of their names, as in `model.named_parameters()`.

    Args:
        include: a glob, several globs, or a predicate of (name, parameter); chooses among *all* parameters.
        exclude: the same; taken away from what was included.
        frozen: also parameters with `requires_grad=False`.

    Raises:
        ParameterError: nothing is left, a glob matches no parameter, or a parameter has no shape yet (lazy modules).

    Warns:
        CoverageWarning: without `include`, more than a hundredth of the weights in matrices are in no such layer, as
            where layers are reparametrised (weight_norm, spectral_norm, torch.nn.utils.prune).
    """
    model = unwrapped(model)
    names = _names_by_storage(model)
    if include is None:
        layers, rest = ([k for k in keys if frozen or names[k][1].requires_grad] for keys in _by_default(model, names))
        included = set(layers)
    else:
        included = set(_chosen(names, include, "include"))
    excluded = set() if exclude is None else set(_chosen(names, exclude, "exclude"))
    parameters = {
        aliases[0]: parameter
        for key, (aliases, parameter) in names.items()
        if key in included and key not in excluded and (frozen or parameter.requires_grad)
    }
    if not parameters:
        unfrozen = "" if frozen else ", or pass frozen=True if its parameters are frozen"
        known = next((aliases[0] for aliases, _ in names.values()), "*.weight")
        fix = f"choose some with include='{known}'{unfrozen}"
        if included and included <= excluded:
            fix = "exclude fewer of them: exclude= leaves none"
        raise ParameterError(f"{type(model).__name__}: nothing to prune among {len(names)} parameters; {fix}")
    if include is None:
        _report_coverage(model, [names[key] for key in layers], [names[key] for key in rest])
    return parameters


def kernels(model: nn.Module, *, frozen: bool = False) -> dict[str, nn.Parameter]:
    """What `prunable` gives by default; nothing, without an error or a warning, where there is nothing."""
    names = _names_by_storage(unwrapped(model))
    included, _ = _by_default(unwrapped(model), names)
    return {names[key][0][0]: names[key][1] for key in included if frozen or names[key][1].requires_grad}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers, under whose names masks are kept.

    Wrappers are those of `torch.compile`, (Distributed)DataParallel, and torch's averages of weights.
    """
    while True:
        if "_orig_mod" in model._modules:
            inner = model._modules["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            inner = model.module
        else:
            return model
        assert isinstance(inner, nn.Module)
        model = inner


def check_whole(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Raise `ParameterError` for weights that are sharded over processes, none of which can score or mask them."""
    for name, module in model.named_modules():
        if _is_named(module, "FullyShardedDataParallel"):
            raise ParameterError(
                f"{name or type(module).__name__}: is sharded by FSDP, so no process sees its weights: take the "
                "model before it is wrapped"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel) and parallel(model) is not module:
            raise ParameterError(
                f"{name}: is a DistributedDataParallel inside of the model, which would be taken for one process: wrap "
                "the whole model in it"
            )
    for name, parameter in parameters.items():
        if _is_named(parameter, "DTensor") or hasattr(parameter, "ds_id"):
            kind = "DeepSpeed" if hasattr(parameter, "ds_id") else "a DTensor"
            raise ParameterError(f"{name}: is sharded ({kind}), so no process sees it whole: take the unsharded model")


def check_values(parameters: Mapping[str, Tensor]) -> None:
    """Raise `ParameterError` for parameters on the meta device, where offloading leaves them too."""
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise ParameterError(
                f"{name}: is on the meta device, without values (offloaded, or never loaded): load the model whole, "
                "without offloading"
            )


def _is_named(value: object, kind: str) -> bool:
    """Whether one of the classes of `value` has this name; its package may not be there to be imported."""
    return any(base.__name__ == kind for base in type(value).__mro__)


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of `model` under every one of their names (tied weights under each).

    In a model that peft has wrapped, those of the base model have the names that they had before.
    """
    return dict(_named(unwrapped(model)))


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first of its names, which tied weights have several of."""
    first: dict[int, str] = {}
    parameters = list(_named(unwrapped(model)))
    for name, parameter in parameters:
        first.setdefault(id(parameter), name)
    return {name: first[id(parameter)] for name, parameter in parameters}


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    found = model.named_parameters(remove_duplicate=False)
    if not any(_of_peft(type(module).__mro__) for module in model.modules()):
        yield from found
        return
    paths = _paths_before_peft(model)
    for name, parameter in found:
        path, _, own = name.rpartition(".")
        yield within(paths[path], own), parameter


def _paths_before_peft(model: nn.Module) -> dict[str, str]:
    """Path of every module -> the one that it had before peft wrapped the model, or layers of it."""
    renamed: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        kind = _of_peft(type(module).__mro__)
        if kind == "PeftModel":
            base: Any = module
            base = base.get_base_model()
            renamed |= {at: path for at, inner in model.named_modules(remove_duplicate=False) if inner is base}
        elif kind == "BaseTuner":
            renamed.setdefault(within(path, "model"), path)
        elif kind is not None:
            renamed |= {
                within(path, child): path
                for child in ("base_layer", "original_module", "token_adapter")
                if hasattr(module, child)
            }
    found: dict[str, str] = {}
    for path, _ in model.named_modules(remove_duplicate=False):
        above, _, own = path.rpartition(".")
        found[path] = found[renamed[path]] if path in renamed else within(found[above], own) if path else ""
    return found


_WRAPPERS = ("PeftModel", "BaseTuner", "BaseTunerLayer", "AuxiliaryTrainingWrapper")


@cache
def _of_peft(classes: tuple[type, ...]) -> str | None:
    """Which of peft's wrappers a module of these classes is, if any; peft may not be there to be imported."""
    names = {base.__name__ for base in classes if base.__module__.partition(".")[0] == "peft"}
    return next((name for name in _WRAPPERS if name in names), None)


def users_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Which modules hold each parameter, and under which of their attributes; every module once."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, attribute))
    return found


def within(module: str, name: str) -> str:
    """The name of a module's parameter in the model, of which the path of the module is "" if it is the model."""
    return f"{module}.{name}" if module else name


_Key = tuple[object, ...]
_Named = tuple[list[str], nn.Parameter]
"""A parameter with its names."""


def storage(parameter: Tensor) -> _Key:
    """What is equal exactly for parameters over the same memory, transposed views included."""
    if parameter.device.type == "meta" or parameter.numel() == 0 or parameter.layout is not torch.strided:
        return (id(parameter),)
    return (parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.numel())


def _names_by_storage(model: nn.Module) -> dict[_Key, _Named]:
    names: dict[_Key, _Named] = {}
    for name, parameter in _named(model):
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ParameterError(f"{name}: a lazy parameter has no shape yet: run the model once before pruning it")
        names.setdefault(storage(parameter), ([], parameter))[0].append(name)
    return names


def _by_default(model: nn.Module, names: Mapping[_Key, _Named]) -> tuple[list[_Key], list[_Key]]:
    """The kernels of `model`, and what is neither a kernel nor an embedding, in the order of `names`."""
    found: set[_Key] = set()
    embeddings: set[_Key] = set()
    for module in model.modules():
        found.update(storage(parameter) for parameter in _kernels(module))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.add(storage(module.weight))
    found -= embeddings
    return [key for key in names if key in found], [key for key in names if key not in found | embeddings]


def _kernels(module: nn.Module) -> Iterator[nn.Parameter]:
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if isinstance(module, _KERNELS) or is_conv1d(module):
        yield from (own[name] for name in ("weight",) if name in own)
    elif isinstance(module, _RECURRENT):
        yield from (parameter for name, parameter in own.items() if name.startswith("weight_"))
    elif isinstance(module, nn.MultiheadAttention):
        yield from (own[name] for name in _ATTENTION if name in own)
    else:
        yield from (parameter for _, parameter in experts_in(module))


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is the linear layer of transformers that has its weight the other way round, [inputs, outputs]."""
    return {"nx", "nf", "_parameters"} <= set(vars(module)) and "weight" in module._parameters


def experts_in(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of all experts, stacked in one tensor each, that `module` itself holds, by their names in it."""
    own = [(name, p) for name, p in module._parameters.items() if p is not None and p.dim() == 3 and min(p.shape) > 1]
    counts = {value for name, value in vars(module).items() if "expert" in name and type(value) is int}
    named_alike = [(name, p) for name, p in own if not any(part in name for part in _VECTORS)]
    yield from ((name, p) for name, p in named_alike if p.is_floating_point() and p.shape[0] in counts)


_VECTORS = ("pos", "embed", "token", "bias")
"""Parts of the names of parameters that are vectors, or tables of them, not weights of a product."""


def _report_coverage(model: nn.Module, included: Iterable[_Named], rest: Iterable[_Named]) -> None:
    """Warn if more than 1 % of the weights in matrices are in layers that `prunable` does not know."""
    left = {
        names[0]: parameter.numel()
        for names, parameter in rest
        if sum(size > 1 for size in parameter.shape) > 1 and not any(part in names[0] for part in _VECTORS)
    }
    total = sum(left.values()) + sum(parameter.numel() for _, parameter in included)
    if sum(left.values()) <= 0.01 * total:
        return
    largest = sorted(left, key=lambda name: -left[name])
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    warnings.warn(
        f"{type(model).__name__}: {sum(left.values()) / total:.1%} of the weights in matrices are not prunable: "
        f"{', '.join(largest[:3])}{more} belong to layers that are not recognised: choose them with include=, or take "
        "reparametrisations (weight_norm, torch.nn.utils.prune) off first",
        CoverageWarning,
        stacklevel=3,
    )


def _chosen(names: Mapping[_Key, _Named], choice: Choice, argument: str) -> Iterator[_Key]:
    """Storages of which any name is chosen."""
    if callable(choice):
        for key, (aliases, parameter) in names.items():
            if any(choice(alias, parameter) for alias in aliases):
                yield key
        return
    for glob in [choice] if isinstance(choice, str) else choice:
        matching = [key for key, (aliases, _) in names.items() if any(fnmatchcase(alias, glob) for alias in aliases)]
        if not matching:
            known = ", ".join(aliases[0] for aliases, _ in list(names.values())[:5])
            raise ParameterError(f"{argument}={glob!r} matches no parameter; the model has {known}, …")
        yield from matching
