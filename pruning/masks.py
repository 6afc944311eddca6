"""Masks: which weights are kept, by parameter name. They live outside the module and are their own artefact."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.attachment import Attachment
from pruning.checksums import checksum
from pruning.coding import decode, encode
from pruning.errors import ArtefactError, MaskError
from pruning.parameters import check_whole, first_names, named, storage
from pruning.processes import of_first_process

_FORMAT = "pruning.masks/3"


@dataclass(frozen=True)
class TensorCount:
    """One line of `Masks.table()`."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Kept / total, in [0, 1]."""
        return self.kept / self.total if self.total else 1.0


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter names to bool tensors, `True` = kept. The tensors are not copied."""

    def __init__(self, masks: Mapping[str, Tensor]):
        """Raises `MaskError` for a value that is no bool tensor, or for an empty mapping."""
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"{name}: a mask is a bool tensor, this is {kind}: convert it, as in mask != 0")
        if not masks:
            raise MaskError("no masks: give one per prunable parameter")
        self._masks = dict(masks)

    @classmethod
    def dense(cls, parameters: Mapping[str, Tensor]) -> "Masks":
        """Masks that keep everything."""
        return cls({name: torch.ones(p.shape, dtype=torch.bool, device=p.device) for name, p in parameters.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(mask, other[name]) for name, mask in self.items())

    __hash__ = None  # type: ignore[assignment]  # tensors compare by value, so masks are no keys

    @property
    def total(self) -> int:
        """Prunable weights."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """Weights that are kept."""
        return sum(int(mask.sum()) for mask in self.values())

    @property
    def density(self) -> float:
        """Kept / total over all prunable weights, in [0, 1]."""
        return self.kept / self.total if self.total else 1.0

    @property
    def emptied(self) -> tuple[str, ...]:
        """Names of tensors of which nothing is kept (layer collapse)."""
        return tuple(line.name for line in self.table() if line.total and not line.kept)

    def table(self) -> tuple[TensorCount, ...]:
        """Counts per tensor, in order."""
        return tuple(TensorCount(name, tuple(m.shape), int(m.sum()), m.numel()) for name, m in self.items())

    def __repr__(self) -> str:
        return f"Masks({self.kept} of {self.total} kept in {len(self)} tensors)"

    def __str__(self) -> str:
        """The table, one line a tensor; emptied tensors are named as such."""
        lines = [*self.table(), TensorCount("all", (), self.kept, self.total)]
        width = max(len(line.name) for line in lines)
        return "\n".join(
            f"{line.name:<{width}}  {line.kept:>12,} / {line.total:>12,}  {line.density:>9.5f}"
            + ("  emptied" if line.total and not line.kept else "")
            for line in lines
        )

    def __and__(self, other: "Masks") -> "Masks":
        """What both keep."""
        return self._combined(other, torch.logical_and)

    def __or__(self, other: "Masks") -> "Masks":
        """What either keeps."""
        return self._combined(other, torch.logical_or)

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def check(self, model: nn.Module) -> None:
        """Raise `MaskError`, saying how, if these masks do not fit `model`'s parameters."""
        self._fitting(model)

    def agree(self, model: nn.Module) -> bool:
        """Whether every removed weight of `model` is exactly zero."""
        parameters = self._fitting(model)
        return not any(bool(parameters[n].detach()[~mask.to(parameters[n].device)].any()) for n, mask in self.items())

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set removed weights of `model` to zero, once; `attach` holds them there.

        Over the processes of a DDP-wrapped model by the masks of the first one.
        """
        parameters = self._fitting(model)
        for name, mask in self.agreed(model).items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)

    def attach(self, model: nn.Module, *optimizers: Optimizer) -> Attachment:
        """Hold the masks on `model` while it trains: see `pruning.attachment`.

        Use it as `with masks.attach(model, optimizer): …`, or keep the handle and call `detach()`. Attach before the
        first step; give every optimizer that updates the masked parameters. Optimizers that wrap another, as
        accelerate's do, are looked through. Over the processes of a DDP-wrapped model the masks of the first one hold.

        Raises:
            MaskError: the masks do not fit, a masked parameter is on the meta device, or an optimizer has none of them
                or cannot be watched.
            ParameterError: masked parameters are sharded over processes.
        """
        check_whole(model, named(model))
        return self.agreed(model).hold(model, *optimizers)

    def agreed(self, model: nn.Module) -> "Masks":
        """Those of the first process of a DDP-wrapped model; these, for any other."""
        return Masks(of_first_process(model, self))

    def hold(self, model: nn.Module, *optimizers: Optimizer) -> Attachment:
        """As `attach`, of masks on which processes have agreed."""
        parameters = self._fitting(model)
        masked = {storage(parameters[name]) for name in self}
        for optimizer in optimizers:
            if not any(storage(p) in masked for group in optimizer.param_groups for p in group["params"]):
                kind = type(optimizer).__name__
                raise MaskError(f"{kind}: updates none of the masked parameters: give the optimizer of this model")
        for name in self:
            if parameters[name].device.type == "meta":
                raise MaskError(
                    f"{name}: is on the meta device: give it memory (model.to_empty) before attaching masks"
                )
        return Attachment(parameters, {**self, **self._of_other_views(parameters)}, optimizers)

    def save(self, path: str | PathLike[str]) -> None:
        """At most one bit a weight, as safetensors, with names, shapes and counts; `OSError` if it cannot be written.

        Sparse masks take less: see `pruning.coding`.
        """
        lines, packed = {}, {}
        for line in self.table():
            coding, data = encode(self[line.name].cpu().numpy().reshape(-1))
            lines[line.name] = {"shape": line.shape, "kept": line.kept, "coding": coding}
            packed[line.name] = torch.from_numpy(data)
        header = json.dumps(lines)
        try:
            # one entry: the library writes several in an order of chance, and equal masks should be equal files
            entry = json.dumps({"format": _FORMAT, "tensors": header, "sha256": checksum(header, packed, shapes=False)})
            save_file(packed, path, {"masks": entry})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | PathLike[str], model: nn.Module | None = None) -> "Masks":
        """Masks from `save`, on the CPU; checked against `model` if given.

        Raises:
            ArtefactError: no such file, cut, damaged, or not masks of this format.
            MaskError: they do not fit `model`.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path}: cannot be read as masks ({error}): make it again") from error
        entry = _entry(metadata)
        if entry.get("format") != _FORMAT:
            raise ArtefactError(f"{path}: is no file of masks (format {entry.get('format')!r}): give one from save()")
        header = str(entry.get("tensors", ""))
        if entry.get("sha256") != checksum(header, packed, shapes=False):
            raise ArtefactError(f"{path}: is damaged, its content is not what was saved: make the file again")
        described = json.loads(header)
        masks = cls({name: _unpacked(path, name, packed[name], line) for name, line in described.items()})
        if model is not None:
            masks.check(model)
        return masks

    def joined(self, model: nn.Module) -> "Masks":
        """Each weight's mask once, on its device: under the first name of a tied weight, what all of its masks keep."""
        parameters, first = self._fitting(model), first_names(model)
        found: dict[str, Tensor] = {}
        for name, mask in self.items():
            mask = mask.to(parameters[name].device)
            found[first[name]] = found[first[name]] & mask if first[name] in found else mask
        return Masks(found)

    def _fitting(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = named(model)
        for name, mask in self.items():
            if name not in parameters:
                if name.endswith("weight") and f"{name.removesuffix('weight')}values" in parameters:
                    raise MaskError(f"{name}: runs sparsely: call dense_execution(model), or execution.dense(), first")
                raise MaskError(f"{name}: the model has no such parameter: use masks made for this model")
            if parameters[name].shape != mask.shape:
                raise MaskError(
                    f"{name}: the mask has shape {list(mask.shape)}, the model's parameter "
                    f"{list(parameters[name].shape)}: use masks made for this model"
                )
        return parameters

    def _of_other_views(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Masks of further Parameter objects over the memory of a masked one, transposed views included."""
        masked = {storage(parameters[name]): name for name in self}
        known = {id(parameters[name]) for name in self}
        views = {}
        for name, view in parameters.items():
            first = masked.get(storage(view))
            if first is None or id(view) in known:
                continue
            known.add(id(view))
            weight = parameters[first]
            in_memory = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.bool).copy_(self[first])
            views[name] = in_memory.as_strided(view.shape, view.stride())
        return views

    def _combined(self, other: "Masks", combine: Callable[[Tensor, Tensor], Tensor]) -> "Masks":
        for name in sorted(self.keys() ^ other.keys()):
            raise MaskError(f"{name}: is in only one of the two masks: combine masks over the same parameters")
        for name, mask in self.items():
            if mask.shape != other[name].shape:
                raise MaskError(
                    f"{name}: masks of shapes {list(mask.shape)} and {list(other[name].shape)} cannot be combined: "
                    "use masks made for the same model"
                )
        return Masks({name: combine(mask, other[name].to(mask.device)) for name, mask in self.items()})


def _entry(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        entry = json.loads(metadata.get("masks", "{}"))
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _unpacked(path: str | PathLike[str], name: str, packed: Tensor, line: dict[str, Any]) -> Tensor:
    shape, data = torch.Size(line["shape"]), packed.numpy()
    if packed.dtype != torch.uint8:
        raise ArtefactError(f"{path}: {name} holds {packed.dtype}, not bytes: make the file again")
    try:
        mask = decode(line["coding"], data, line["kept"], shape.numel())
    except ValueError as error:
        raise ArtefactError(f"{path}: {name} {error}: make the file again") from error
    return torch.from_numpy(mask).reshape(shape)
