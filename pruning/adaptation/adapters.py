"""Bottleneck adapters: a small network beside a feed-forward layer or after it; peft has none."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pruning.adaptation.freezing import check_free, freeze
from pruning.errors import AdaptationError
from pruning.parameters import unwrapped

Kind = Literal["parallel", "sequential"]
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": nn.functional.gelu}


class Adapter(nn.Module):
    """s · U σ(D x): D [bottleneck, width] and U [width, bottleneck] with biases; U is 0 at first, and so is all of it.

    D is drawn as He et al. 2022 do, by Kaiming's uniform rule.
    """

    def __init__(
        self, width: int, bottleneck: int, outputs: int, activation: str = "relu", scale: float = 1.0, seed: int = 0
    ):
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise AdaptationError(f"activation={activation!r}: choose {' or '.join(_ACTIVATIONS)}")
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, outputs)
        self.activation, self.scale = activation, scale
        generator = torch.Generator().manual_seed(seed)
        bound = (1 / width) ** 0.5  # gain √(1/3) of a = √5, and a uniform law is √3 wider than its deviation
        with torch.no_grad():
            self.down.weight.uniform_(-bound, bound, generator=generator)
            self.down.bias.zero_()
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """What is added: [..., outputs] of [..., width]."""
        hidden = _ACTIVATIONS[self.activation](self.down(x))
        found: Tensor = self.up(hidden)
        return self.scale * found


class Adapters:
    """Adapters in a model, which is frozen but for them and `dense`, until `detach()`.

    Parallel (He et al. 2022): h + s · U σ(D x), x what enters a feed-forward layer and h what leaves it. Sequential
    (Houlsby et al. 2019): h + s · U σ(D h). They are modules of the model, named `adapter` where they act, so that its
    `state_dict` has them.
    """

    def __init__(
        self,
        model: nn.Module,
        bottleneck: int,
        kind: Kind = "parallel",
        where: Mapping[str, str] | None = None,
        activation: str = "relu",
        scale: float = 1.0,
        seed: int = 0,
    ):
        """Put one adapter into every feed-forward layer.

        Args:
            bottleneck: width of an adapter, at least 1.
            where: name of the module after which an adapter acts -> that before which its input is taken (for
                sequential ones only the former counts); None: `feed_forwards(model)`.
            activation: `relu` or `gelu`.
            scale: s.
            seed: of D.

        Raises:
            AdaptationError: no such modules, a width below 1, or an adaptation that is there already.
        """
        if bottleneck < 1 or kind not in ("parallel", "sequential"):
            raise AdaptationError(
                f"adapters: bottleneck={bottleneck}, kind={kind!r}: give at least 1, and parallel or sequential"
            )
        self.model = unwrapped(model)
        places = feed_forwards(self.model) if where is None else dict(where)
        modules = dict(self.model.named_modules())
        for name in (*places, *places.values()):
            if name not in modules:
                raise AdaptationError(
                    f"{name}: is no module of the model: name those of feed-forward layers with where="
                )
        check_free(self.model)
        self._adapters: dict[str, Adapter] = {}
        for number, (leave, enter) in enumerate(places.items()):
            outputs = _width(modules[leave], leave, last=True)
            width = outputs if kind == "sequential" else _width(modules[enter], enter, last=False)
            like = next(modules[leave].parameters())
            adapter = Adapter(width, bottleneck, outputs, activation, scale, 1000 * seed + number)
            self._adapters[leave] = adapter.to(like.device, like.dtype)
        self._removers: list[Callable[[], None]] = []
        for leave, adapter in self._adapters.items():  # once all are made, so that an error leaves none behind
            modules[leave].add_module("adapter", adapter)
            self._removers.append(partial(modules[leave]._modules.pop, "adapter"))
            self._removers += _hooked(adapter, modules[places[leave]], modules[leave], kind)
        self._removers.append(freeze(self.model, self.parameters(), "adapters"))

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        for adapter in self._adapters.values():
            yield from adapter.parameters()

    def detach(self) -> None:
        """Take the adapters out; the model is as before, and so is what may be trained of it."""
        while self._removers:
            self._removers.pop()()


def feed_forwards(model: nn.Module) -> dict[str, str]:
    """Feed-forward layers of a model of transformers: the module at their end -> the one at their beginning.

    Raises `AdaptationError` where there are none of the usual names.
    """
    found: dict[str, str] = {}
    names = {name for name, _ in model.named_modules()}
    for name in sorted(names):
        above, _, own = name.rpartition(".")
        if own in ("mlp", "ffn", "feed_forward", "DenseReluDense"):
            found[name] = name
        elif own == "intermediate" and f"{above}.output.dense" in names:
            found[f"{above}.output.dense"] = name
    outer = {leave: enter for leave, enter in found.items() if not any(leave.startswith(f"{one}.") for one in found)}
    if not outer:
        raise AdaptationError(f"{type(model).__name__}: no feed-forward layers are known by their names: give where=")
    return outer


def _width(module: nn.Module, name: str, last: bool) -> int:
    """How many features enter a module, or leave it: those of its first or last linear layer."""
    layers = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if not layers:
        raise AdaptationError(f"{name}: has no linear layer, so its width is unknown: name another module with where=")
    return layers[-1].out_features if last else layers[0].in_features


def _hooked(adapter: Adapter, enter: nn.Module, leave: nn.Module, kind: Kind) -> list[Callable[[], None]]:
    """Let `adapter` act; functions that end it. Hooks find what they need in their module, as those of a copy do."""
    if kind == "sequential":
        return [leave.register_forward_hook(_add_to_output).remove]
    vars(enter)[_ADAPTERS] = (*vars(enter).get(_ADAPTERS, ()), adapter)
    return [
        leave.register_forward_hook(_add_of_input).remove,
        enter.register_forward_pre_hook(_keep_input, with_kwargs=True).remove,
        partial(vars(enter).pop, _ADAPTERS, None),
    ]


_ADAPTERS = "_adapters_of_input"
"""Attribute of a module whose input adapters take."""


def _keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for adapter in vars(module)[_ADAPTERS]:
        vars(adapter)["entered"] = args[0] if args else next(iter(kwargs.values()))


def _add_of_input(module: nn.Module, args: Any, outputs: Any) -> Any:
    adapter = module.get_submodule("adapter")
    return _added(outputs, adapter(vars(adapter).pop("entered")))


def _add_to_output(module: nn.Module, args: Any, outputs: Any) -> Any:
    return _added(outputs, module.get_submodule("adapter")(outputs[0] if isinstance(outputs, tuple) else outputs))


def _added(outputs: Any, more: Tensor) -> Any:
    return (outputs[0] + more, *outputs[1:]) if isinstance(outputs, tuple) else outputs + more
