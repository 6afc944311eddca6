"""Labels of rows, which decide what may be averaged: two rows belong together only where `methods` gives them the same
one, which it does only where their configurations agree in everything but the seed and bookkeeping.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from experiments.records import require
from experiments.records.fields import BOOKKEEPING, PRUNING
from pruning.errors import RecordsError

if TYPE_CHECKING:
    import pandas as pd


def methods(frame: pd.DataFrame, budgets: bool = True) -> pd.Series:
    """The method of every row, as a label: what its configuration says, without seed, densities and bookkeeping.

    Two rows have the same label exactly where scorer, model, data and the rest of the configuration agree. A label
    is the name of a paper's method (`conf/method`), or else the scorer's short name, then in brackets what
    distinguishes it from the frame's other methods of that name: "taylor (form=abs)", "magnitude (recovery.epochs=20)".
    Model and data appear where the frame has several. So a label depends on the frame, but not on the order of its
    rows.

    A network that was adapted is called by its adaptation, and by the `budgets` of that: "lora, lora:8".

    The rows of a control (see `experiments.running.controls`) are another method, and its name ends the label:
    "magnitude, reinit".

    A nested "folder" is a place and is ignored; a nested "seed" is ignored where it follows the run's own seed in
    all rows that otherwise agree, and is an ordinary option (a fixed split, say) where it does not.

    Raises `RecordsError` where a row lacks its scorer, model, data, seed or configuration.
    """
    labels = _labels(frame, "scorer", BOOKKEEPING, budgets)
    if "control" not in frame:
        return labels
    return labels.where(frame["control"].isna(), labels + ", " + frame["control"].astype(str))


def setups(frame: pd.DataFrame) -> pd.Series:
    """The set-up of the dense network that every row starts from, as a label: "dense", or "dense (model=lenet_5)".

    As `methods`, over what is decided before pruning: every key of the configuration but those of `PRUNING`.
    """
    return _labels(frame, None, BOOKKEEPING | PRUNING)


def _labels(frame: pd.DataFrame, head: str | None, ignored: Collection[str], budgets: bool = False) -> pd.Series:
    """A label a row: the value in column `head` ("dense" for None), then what differs among those that share it."""
    import pandas as pd  # noqa: PLC0415  # slow to import

    require(frame, [*([head] if head else []), "model", "data", "seed", "config"])
    heads = _heads(frame, head, budgets) if head else ["dense"] * len(frame)
    places = list(zip(frame["model"].astype(str), frame["data"].astype(str), strict=True))
    # A label follows from what is different among rows, not from how many are alike: the levels of a run count once.
    keys = list(zip(heads, places, frame["seed"].astype(str), map(repr, frame["config"]), strict=True))
    first: dict[Any, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    of = [*first.values()]
    labels = _distinct_labels(frame.iloc[of], [heads[row] for row in of], [places[row] for row in of], ignored)
    label = dict(zip(first, labels, strict=True))
    return pd.Series([label[key] for key in keys], index=frame.index, name="method", dtype=object)


def _heads(frame: pd.DataFrame, head: str, budgets: bool) -> list[str]:
    """What labels begin with: the adaptation, with its budget, or the method that the configuration names, or else the
    value in column `head`.
    """
    known = [config if isinstance(config, Mapping) else {} for config in frame["config"]]
    adapted = [(config.get("adaptation") or {}).get("name") for config in known]
    named = [adaptation or config.get("method") for adaptation, config in zip(adapted, known, strict=True)]
    found = [str(method or value) for method, value in zip(named, frame[head], strict=True)]
    if not budgets or "adaptation_budget" not in frame:
        return found
    sizes = frame["adaptation_budget"]
    return [f"{name}, {size}" if there else name for name, size, there in zip(found, sizes, sizes.notna(), strict=True)]


def _distinct_labels(
    frame: pd.DataFrame, heads: list[str], places: list[tuple[str, str]], ignored: Collection[str]
) -> list[str]:
    options = _options(frame, ignored)
    implied = _constant({"model", "data"}, places, options)
    shown: dict[str, list[str]] = {}
    for name in set(heads):
        members = [option for option, other in zip(options, heads, strict=True) if other == name]
        shown[name] = _distinguishing([path for path in _differing(members) if path not in implied], members)
    several = [len(set(names)) > 1 for names in zip(*places, strict=True)] if places else []

    paths = {path for option in options for path in option}
    short = {path: _short(path, paths) for path in paths}
    targets = _targets(options)
    labels = []
    for name, place, option in zip(heads, places, options, strict=True):
        parts = [f"{key}={text}" for key, text, many in zip(("model", "data"), place, several, strict=True) if many]
        parts += [f"{short[path]}={_text(path, option[path], targets)}" for path in shown[name] if path in option]
        labels.append(f"{name} ({', '.join(parts)})" if parts else name)
    return labels


def _options(frame: pd.DataFrame, ignored: Collection[str]) -> list[dict[str, str]]:
    """The flattened configuration of every row, without what is ignored, and without seeds that follow the run's."""
    options, nested = [], []
    for run, config in zip(frame["run"], frame["config"], strict=True):
        if not isinstance(config, Mapping):
            raise RecordsError(f'run {run}: "config" is not a mapping; move this run away or repeat it')
        flat = dict(flattened(config))
        flat = {path: value for path, value in flat.items() if path.split(".")[0] not in ignored}
        nested.append({path: value for path, value in flat.items() if _leaf(path) == "seed"})
        options.append({path: value for path, value in flat.items() if _leaf(path) not in ("seed", "folder")})

    # A seed follows where it equals the run's in *all* rows that agree otherwise: in one row alone it may by chance.
    follows: dict[tuple[Any, str], bool] = defaultdict(lambda: True)
    alike = [frozenset(option.items()) for option in options]
    for group, seeds, own in zip(alike, nested, frame["seed"], strict=True):
        for path, value in seeds.items():
            follows[group, path] &= value == str(own)
    for group, option, seeds in zip(alike, options, nested, strict=True):
        option.update((path, value) for path, value in seeds.items() if not follows[group, path])
    return options


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as (dotted path, JSON): text, so that 1, 1.0, true and "1" stay four values."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from flattened(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, sort_keys=True)


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _differing(options: list[dict[str, str]]) -> list[str]:
    """Paths whose value, or presence, is not the same in all `options`; sorted, the scorer's own before others."""
    paths = {path for option in options for path in option}
    differing = [path for path in paths if len({option.get(path) for option in options}) > 1]
    return sorted(differing, key=lambda path: (not path.startswith("scorer."), path))


def _distinguishing(paths: list[str], options: list[dict[str, str]]) -> list[str]:
    """`paths` without those that a target among them decides: "granularity=Channels" stands for the options of Channels
    too, if all methods with Channels agree on them."""

    def decided(path: str) -> bool:
        target = f"{path.rpartition('.')[0]}._target_"
        values: dict[str | None, set[str | None]] = defaultdict(set)
        for option in options:
            values[option.get(target)].add(option.get(path))
        return target != path and target in paths and all(len(found) == 1 for found in values.values())

    return [path for path in paths if not decided(path)]


def _constant(roots: set[str], places: list[tuple[str, str]], options: list[dict[str, str]]) -> set[str]:
    """Paths below `roots` that (model, data) already decide, so that the short names say all."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for place, option in zip(places, options, strict=True):
        groups[place].append(option)
    paths = {path for option in options for path in option if path.split(".")[0] in roots}
    return paths - {path for group in groups.values() for path in _differing(group)}


def _short(path: str, paths: set[str]) -> str:
    """The path as a label shows it: "granularity" for its target, "form" for a scorer's own option."""
    path = path.removesuffix("._target_")
    own = path.removeprefix("scorer.")
    return path if own in paths or f"{own}._target_" in paths or own == "seed" else own


def _targets(options: list[dict[str, str]]) -> dict[str, str]:
    """Import paths (as JSON) -> their last part, where no other import path of the frame ends in the same."""
    found = {value for option in options for path, value in option.items() if _leaf(path) == "_target_"}
    names = {value: str(json.loads(value)).rsplit(".", 1)[-1] for value in found}
    return {value: name for value, name in names.items() if list(names.values()).count(name) == 1}


def _text(path: str, value: str, targets: Mapping[str, str]) -> str:
    """JSON as a label shows it: a string without its quotes, unless it would then read as something else."""
    if _leaf(path) == "_target_" and value in targets:
        return targets[value]
    plain = json.loads(value)
    if not isinstance(plain, str) or not plain or not plain.isprintable() or set(plain) & set(',=()"'):
        return value
    try:
        json.loads(plain)
    except ValueError:
        return plain
    return value
