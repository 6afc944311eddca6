"""Contents of a store: artefacts in words, whether rows need them, and leftovers of killed processes."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.records import FILE
from experiments.runtime.locks import at_once
from experiments.store.artefacts import DAMAGED, LOCKS, SCRATCH, UNFINISHED, Artefact, Store
from pruning.errors import ArtefactError


@dataclass(frozen=True)
class Entry:
    """An artefact on disk: its bytes, when it was made (seconds since 1970), what it is, and who it comes from.

    `damage` is what is wrong with its manifest, or None; `needed`: a row, or another needed artefact, refers to it.
    """

    artefact: Artefact
    size: int
    made: float
    words: str
    parents: tuple[str, ...]
    damage: str | None
    needed: bool


def inventory(store: Store, runs: Path) -> list[Entry]:
    """All artefacts of `store`, by kind and age. Rows below the folder `runs` say which are needed."""
    kinds = [place for place in sorted(store.root.iterdir()) if place.is_dir() and place.name not in _OWN]
    found = [Artefact(kind.name, folder.name, folder) for kind in kinds for folder in kind.iterdir() if folder.is_dir()]
    identities: dict[Artefact, dict[str, Any] | ArtefactError] = {}
    for artefact in found:
        try:
            identities[artefact] = artefact.identity
        except ArtefactError as error:
            identities[artefact] = error
    sound = {a: identity for a, identity in identities.items() if isinstance(identity, dict)}
    parents = {artefact: _parents(identity) for artefact, identity in sound.items()}
    by_key = {artefact.key: identity for artefact, identity in sound.items()}
    networks = _networks(runs)
    needed = _closure((key for network in networks for key in network.split("+")), parents)
    entries = []
    for artefact in found:
        identity = identities[artefact]
        wanted, words, damage = artefact.key in needed, "", None
        if isinstance(identity, ArtefactError):
            damage = str(identity)
        else:
            words = _words(artefact.kind, identity, by_key)
            if artefact.kind == "rows":
                wanted = identity.get("from") in networks
        size = sum(path.stat().st_size for path in artefact.folder.rglob("*") if path.is_file())
        made = artefact.folder.stat().st_mtime
        entries.append(Entry(artefact, size, made, words, parents.get(artefact, ()), damage, wanted))
    return sorted(entries, key=lambda entry: (entry.artefact.kind, entry.made))


def unfinished(store: Store) -> list[tuple[Path, bool]]:
    """The entries of `unfinished/`, and whether a process is at work on each."""
    place = store.root / UNFINISHED
    return [(path, not free(store, path)) for path in sorted(place.iterdir())] if place.is_dir() else []


def free(store: Store, path: Path) -> bool:
    """Whether nobody holds the lock of the artefact to which `path`, in `unfinished/`, belongs."""
    kind, _, rest = path.name.removesuffix(SCRATCH).partition("-")
    try:
        with at_once(store.lock(kind, rest.partition("-")[0])) as alone:
            return alone
    except OSError:  # where nothing can be written, nothing can be found out
        return False


def kept_aside(store: Store) -> list[Path]:
    """Damaged artefacts that were moved away and made again."""
    place = store.root / DAMAGED
    return sorted(place.iterdir()) if place.is_dir() else []


def age(seconds: float) -> str:
    """The time since `seconds` (since 1970), in words."""
    passed = max(0.0, time.time() - seconds)
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed / length:.0f} {name}"
    return f"{passed:.0f} s"


_OWN = (LOCKS, UNFINISHED, DAMAGED)


def _parents(identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the artefacts that this one was made from."""
    named = [identity.get(name) for name in ("from", "weights", "teacher", "support", "scored")]
    return tuple(dict.fromkeys(key for name in named if isinstance(name, str) for key in name.split("+")))


def _closure(keys: Iterable[str], parents: Mapping[Artefact, tuple[str, ...]]) -> set[str]:
    by_key: dict[str, set[str]] = {}
    for artefact, above in parents.items():
        by_key.setdefault(artefact.key, set()).update(above)
    needed: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += by_key.get(key, ())
    return needed


def _networks(runs: Path) -> set[str]:
    """Keys of all networks in rows below `runs`; lines that cannot be read have none."""
    found = set()
    for path in runs.rglob(FILE) if runs.is_dir() else ():
        for line in path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                found |= {row[name] for name in ("network", "dense") if isinstance(row.get(name), str)}
                others = row.get("adaptation_others")  # which the same command would train again
                found |= {key for key in others if isinstance(key, str)} if isinstance(others, list) else set()
    return found


def _words(kind: str, identity: Mapping[str, Any], by_key: Mapping[str, Mapping[str, Any]]) -> str:
    """ "lenet_300_100, seed 0: magnitude, density 0.1": the network at the root, and what was done last."""
    root, seen = identity, set()
    while True:
        above = [key for key in _parents(root)[:1] if key in by_key and key not in seen]
        if not above:
            break
        seen.add(above[0])
        root = by_key[above[0]]
    parts = [_short(root.get("model")), f"seed {root['seed']}" if "seed" in root else ""]
    own = [_short(identity.get(group)) for group in ("scorer", "dynamic", "distillation")]
    own.append(str(identity.get("control") or ""))
    if identity.get("density") is not None:
        own.append(f"density {identity['density']:.4g}")
    steps = identity.get("steps")
    if isinstance(steps, list) and len(steps) >= 2:
        own.append(f"steps {steps[0]} to {steps[1]}")
    if kind == "initial" and identity.get("draw") != "initial weights":
        own.append(str(identity.get("draw")))
    head, tail = (", ".join(part for part in list_ if part) for list_ in (parts, own))
    return f"{head}: {tail}" if tail else head


def _short(config: Any) -> str:
    target = config.get("_target_") if isinstance(config, Mapping) else None
    return str(target).rsplit(".", 1)[-1] if target else ""
