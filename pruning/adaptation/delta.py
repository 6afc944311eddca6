"""What an adaptation has changed in a network: places, differences, and the network that they are of.

A file takes little more than the entropy of the places and the bytes of the values: places are gaps in Golomb-Rice code
(`pruning.coding`), and all tensors share one header.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.checksums import checksum
from pruning.coding import decode, encode
from pruning.errors import AdaptationError, ArtefactError
from pruning.masks import Masks
from pruning.parameters import named

_FORMAT = "pruning.delta/1"
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
"""Of weights that differences are added to, and of differences."""


@dataclass(frozen=True)
class Change:
    """Differences of one tensor to its base.

    Attributes:
        shape, dtype: of the base.
        base: `digest` of the base.
        places: int64 [k], ascending, in the flattened tensor.
        values: [k], what is added there; the sum is rounded to `dtype`.
    """

    shape: torch.Size
    dtype: torch.dtype
    base: str
    places: Tensor
    values: Tensor

    def added(self, base: Tensor) -> Tensor:
        """The changed values, [k], of those of the base."""
        return (base.to(self.values.device, _sum_dtype(self.values, base)) + self.values).to(base)


@dataclass(frozen=True)
class Delta:
    """A sparse update of a network, and tensors that are replaced as a whole, such as the head.

    Attributes:
        changes: name of a parameter -> its differences.
        dense: name of a parameter, or of statistics such as those of batch norm -> all of its values.
    """

    changes: Mapping[str, Change]
    dense: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def support(self) -> Masks:
        """Where there are differences: True in masks of the changed parameters, on the CPU."""
        masks = {}
        for name, change in self.changes.items():
            masks[name] = torch.zeros(change.shape, dtype=torch.bool)
            masks[name].view(-1)[change.places.cpu()] = True
        return Masks(masks)

    @property
    def count(self) -> int:
        """Number of differences."""
        return sum(len(change.places) for change in self.changes.values())

    def scaled(self, factor: float) -> "Delta":
        """All differences times `factor`; what is replaced as a whole stays."""
        return self._with({name: change.values * factor for name, change in self.changes.items()})

    def rounded(self, dtype: torch.dtype) -> "Delta":
        """Differences in `dtype`, as a smaller file has them: evaluate what is saved."""
        return self._with({name: change.values.to(dtype) for name, change in self.changes.items()})

    def check(self, model: nn.Module) -> None:
        """Raise `AdaptationError` unless this is of `model` as it is now: names, shapes, dtypes, and every bit of the
        tensors that are changed at places. Others are not looked at.
        """
        parameters = _tensors(model)
        for name in (*self.changes, *self.dense):
            if name not in parameters:
                raise AdaptationError(f"{name}: the model has no such tensor: give the model that was adapted")
        for name, change in self.changes.items():
            weight = parameters[name]
            if (weight.shape, weight.dtype) != (change.shape, change.dtype):
                raise AdaptationError(
                    f"{name}: is {_described(weight)} here, and was {list(change.shape)} {change.dtype} when it was "
                    "adapted: give the model that was adapted"
                )
            if digest(weight) != change.base:
                raise AdaptationError(
                    f"{name}: has other values than when it was adapted: give the model as it was then, not one that "
                    "was trained, pruned or adapted since"
                )
        for name, values in self.dense.items():
            if parameters[name].shape != values.shape:
                raise AdaptationError(
                    f"{name}: is {_described(parameters[name])} here, and was {list(values.shape)} when it was "
                    "adapted: give the model that was adapted"
                )

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> "Applied":
        """Add the differences, in place. Use it as `with delta.apply_(model): …`, or call `revert()` of what it gives.

        Raises:
            AdaptationError: `model` is not the one that was adapted, or not as it was then.
        """
        self.check(model)
        parameters = _tensors(model)
        before: dict[str, tuple[Tensor, Tensor]] = {}
        for name, change in self.changes.items():
            places = change.places.to(parameters[name].device)
            base = read(parameters[name], places)
            before[name] = places, base
            write_(parameters[name], places, change.added(base))
        whole = {name: parameters[name].detach().clone() for name in self.dense}
        for name, values in self.dense.items():
            parameters[name].copy_(values)
        return Applied(model, before, whole)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file; equal deltas are equal files. `OSError` if it cannot be written."""
        lines, codes, values = [], [], []
        for name, change in sorted(self.changes.items()):
            mask = torch.zeros(change.shape.numel(), dtype=torch.bool)
            mask[change.places.cpu()] = True
            coding, data = encode(mask.numpy())
            codes.append(torch.from_numpy(data))
            values.append(change.values.detach().cpu())
            lines.append(
                [name, *map(_word, (change.shape, change.dtype)), change.base, len(values[-1]), coding, len(data)]
            )
        tensors = {f"dense.{name}": value.detach().cpu().contiguous() for name, value in self.dense.items()}
        if lines:
            tensors |= {"places": torch.cat(codes), "values": torch.cat(values)}
        header = json.dumps(lines, separators=(",", ":"))
        entry = {"format": _FORMAT, "changes": lines, "sha256": checksum(header, tensors, shapes=True)}
        try:
            save_file(tensors, path, {"delta": json.dumps(entry, separators=(",", ":"))})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Delta":
        """A delta from `save`, on the CPU.

        Raises:
            ArtefactError: no such file, cut, damaged, or no delta of this format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path}: cannot be read as a delta ({error}): make it again") from error
        try:
            entry = json.loads(metadata.get("delta", "{}"))
        except ValueError:
            entry = {}
        if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
            raise ArtefactError(f"{path}: is no delta of the format {_FORMAT}: give a file from Delta.save()")
        lines = entry.get("changes", [])
        if entry.get("sha256") != checksum(json.dumps(lines, separators=(",", ":")), tensors, shapes=True):
            raise ArtefactError(f"{path}: is damaged, its content is not what was saved: make the file again")
        dense = {name.removeprefix("dense."): value for name, value in tensors.items() if name.startswith("dense.")}
        return cls(dict(_changes(path, lines, tensors)), dense)

    def _with(self, values: Mapping[str, Tensor]) -> "Delta":
        return replace(self, changes={n: replace(change, values=values[n]) for n, change in self.changes.items()})


class Applied:
    """A delta that is in a model: `revert()`, or the end of a `with` block, puts the old values back, bit by bit.

    What was written at other places meanwhile stays.
    """

    def __init__(self, model: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]], whole: Mapping[str, Tensor]):
        self._model, self._before, self._whole = model, dict(before), dict(whole)

    @torch.no_grad()
    def revert(self) -> None:
        """Put the old values back; again, it does nothing."""
        parameters = _tensors(self._model)
        for name, (places, values) in self._before.items():
            write_(parameters[name], places, values)
        for name, values in self._whole.items():
            parameters[name].copy_(values)
        self._before, self._whole = {}, {}

    def __enter__(self) -> nn.Module:
        return self._model

    def __exit__(self, *_: object) -> None:
        self.revert()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model, by all of their names."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **named(model)}


def digest(tensor: Tensor) -> str:
    """128 bits of the SHA-256 of the bytes of `tensor`, row by row, in hexadecimal."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()[:32]


def read(weight: Tensor, places: Tensor) -> Tensor:
    """The values of `weight` at `places` of it flattened."""
    if weight.is_contiguous():
        return weight.detach().view(-1)[places]
    return weight.detach()[torch.unravel_index(places, weight.shape)]


@torch.no_grad()
def write_(weight: Tensor, places: Tensor, values: Tensor) -> None:
    """Write `values`, of its dtype, at `places` of `weight` flattened."""
    if weight.is_contiguous():
        weight.view(-1).index_copy_(0, places, values)
    else:
        weight.index_put_(torch.unravel_index(places, weight.shape), values)


def _sum_dtype(values: Tensor, base: Tensor) -> torch.dtype:
    """In which the sum of a base and differences is taken, before it is rounded."""
    return torch.promote_types(torch.promote_types(values.dtype, base.dtype), torch.float32)


def _changes(path: object, lines: list[list[Any]], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Change]]:
    at = of_code = 0
    for name, shape, dtype, base, kept, coding, length in lines:
        size, count, span = torch.Size(shape), int(kept), int(length)
        data = tensors["places"][of_code : of_code + span].numpy()
        try:
            mask = decode(str(coding), data, count, size.numel())
        except ValueError as error:
            raise ArtefactError(f"{path}: {name} {error}: make the file again") from error
        places = torch.from_numpy(mask).nonzero()[:, 0]
        yield (
            str(name),
            Change(size, _dtype(path, dtype), str(base), places, tensors["values"][at : at + count].clone()),
        )
        at, of_code = at + count, of_code + span


def _word(value: object) -> object:
    return list(value) if isinstance(value, torch.Size) else str(value).removeprefix("torch.")


def _dtype(path: object, word: object) -> torch.dtype:
    if word not in DTYPES:
        raise ArtefactError(f"{path}: holds differences to {word}, which is no dtype of weights: make the file again")
    return DTYPES[str(word)]


def _described(weight: Tensor) -> str:
    return f"{list(weight.shape)} {weight.dtype}"
