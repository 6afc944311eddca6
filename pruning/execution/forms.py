"""Forms that a layer may have in a network that is deployed, each timed in passes of the whole network."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from pruning.copying import cloned
from pruning.execution.crossover import fastest
from pruning.execution.modules import Sparse
from pruning.execution.packing import pack_, packable
from pruning.execution.product import has_csr
from pruning.execution.switching import candidates, sparse_execution
from pruning.execution.timing import in_turn
from pruning.inputs import Inputs, copies_for
from pruning.masks import Masks
from pruning.parameters import named

FORMS = ("dense", "packed", "sparse", "csr")
"""The simplest first."""
NOISE = 1.02
"""Relative difference below which forms count as equally fast: the simplest or smallest of them is taken."""
_ROUNDS = 9
_ALL = 2**31 - 1  # columns


@dataclass(frozen=True)
class Layer:
    """A layer that can run sparsely, as it was found.

    Attributes:
        name: of its weight.
        outputs, inputs: that are left of the matrix.
        kept: how many of its weights are not zero.
        columns: that each of its sparse products has, at most; see `Pattern.few`.
        milliseconds: of all its calls in a forward pass of the network, for each of its forms: "dense", "packed" (dense
            with its weight packed), "sparse" (with products that are bags), "csr" (with MKL's).
        chosen: the name of one of these.
    """

    name: str
    outputs: int
    inputs: int
    kept: int
    columns: int
    milliseconds: Mapping[str, float]
    chosen: str

    @property
    def dense(self) -> float:
        """Milliseconds of the dense form."""
        return self.milliseconds["dense"]

    @property
    def sparse(self) -> float:
        """Milliseconds of the faster sparse form."""
        return min(self.milliseconds[form] for form in ("sparse", "csr") if form in self.milliseconds)

    @property
    def density(self) -> float:
        """Kept / all that are left."""
        return self.kept / (self.outputs * self.inputs)


def timed(model: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs) -> tuple[Layer, ...]:
    """Every layer that can run sparsely and is called, timed in each of its forms in passes of the whole network.

    There weights and inputs come from as far away as they will, which decides between forms where batches are small.
    """
    parameters = named(model)
    if not any(name in parameters for name in masks):  # they went with a whole block
        return ()
    kept = nonzero(model, masks)
    users = _users(model, candidates(model, kept))
    forms = {form: set(users) for form in FORMS}
    forms["packed"] = {name for name, paths in users.items() if all(packable(model.get_submodule(p)) for p in paths)}
    forms["csr"] = set(users) if has_csr() else set()
    seconds: dict[str, dict[str, list[float]]] = {form: {name: [] for name in names} for form, names in forms.items()}
    columns: dict[str, int] = {}
    networks = {
        form: in_forms(model, masks, dict.fromkeys(names, form), dict.fromkeys(names, _ALL))
        for form, names in forms.items()
        if names
    }
    for form, network in networks.items():
        for name in forms[form]:
            for module in map(network.get_submodule, users[name]):
                if form == "sparse":
                    module.register_forward_pre_hook(partial(_count_columns, columns, name), with_kwargs=True)
                _add_time(module, seconds[form][name])

    def timed_pass(form: str) -> None:
        for found in seconds[form].values():
            found.append(0.0)
        call(networks[form], inputs)

    in_turn({form: partial(timed_pass, form) for form in networks}, _ROUNDS)
    return tuple(
        _layer(name, kept[name], columns[name], {form: seconds[form][name] for form in FORMS if name in forms[form]})
        for name in users
        if name in columns  # it is called
    )


def _layer(name: str, mask: Tensor, columns: int, seconds: dict[str, list[float]]) -> Layer:
    found = {form: times[-_ROUNDS:] for form, times in seconds.items()}  # without turns of warm-up
    gains = {form: median(a / b for a, b in zip(found["dense"], found[form], strict=True)) for form in found}
    chosen = fastest(gains)
    if chosen == "dense" and gains.get("packed", 0.0) > NOISE:
        chosen = "packed"  # small gains of layer after layer add up, and nothing else is lost with it
    milliseconds = {form: 1000 * median(times) for form, times in found.items()}
    return Layer(
        name=name,
        outputs=mask.shape[0],
        inputs=mask[0].numel(),
        kept=int(mask.sum()),
        columns=columns,
        milliseconds=milliseconds,
        chosen=chosen,
    )


def _add_time(module: nn.Module, seconds: list[float]) -> None:
    """Let each call of `module` add what it takes to the last of `seconds`."""
    begun = [0.0]

    def before(*_: Any) -> None:
        begun[0] = perf_counter()

    def after(*_: Any) -> None:
        seconds[-1] += perf_counter() - begun[0]

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True)


def _count_columns(
    found: dict[str, int], name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert isinstance(module, Sparse)
    found[name] = max(found.get(name, 0), module.columns(args[0] if args else kwargs["input"]))


def _users(model: nn.Module, names: Collection[str]) -> dict[str, list[str]]:
    """The paths of the modules that have each of these weights."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        found.setdefault(id(module._parameters.get("weight")), []).append(path)
    return {name: found[id(model.get_parameter(name))] for name in names}


def in_forms(
    model: nn.Module, masks: Mapping[str, Tensor], forms: Mapping[str, str], columns: Mapping[str, int]
) -> nn.Module:
    """A copy of `model` in which the layers of these weights have these forms, for products of so many columns."""
    model = cloned(model)
    for paths in _users(model, [name for name, form in forms.items() if form == "packed"]).values():
        for path in paths:
            pack_(model.get_submodule(path))
    few = {name: columns[name] * (form == "csr") for name, form in forms.items() if form in ("sparse", "csr")}
    if few:
        sparse_execution(model, nonzero(model, masks), layers=few)
    return model


def nonzero(model: nn.Module, names: Collection[str]) -> Masks:
    """What is left in the weights that were masked."""
    return Masks({name: weight.detach() != 0 for name, weight in named(model).items() if name in names})


def call(model: nn.Module, inputs: Inputs) -> None:
    args, kwargs = copies_for(model, inputs)
    with torch.inference_mode():
        model(*args, **kwargs)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
