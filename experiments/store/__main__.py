"""python -m experiments.store ls|rm|verify: what a store holds, for which configuration, and whether it is sound.

python -m experiments.store ls                        every artefact, its size, and whether a run needs it
python -m experiments.store verify                    every file against its checksum; exit code 1 if one is damaged
python -m experiments.store rm 4c81f0a2               by key, or the first digits of one
python -m experiments.store rm --unreferenced         all that no row below --runs needs
python -m experiments.store rm --unfinished           what processes that died have left
python -m experiments.store rm --damaged              what was damaged and has been made again
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from experiments.runtime.errors import report_error
from experiments.runtime.locks import at_once
from experiments.store.artefacts import SCRATCH, Store
from experiments.store.inventory import Entry, age, free, inventory, kept_aside, unfinished
from pruning.errors import ArtefactError, PruningError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 for an error that the user can fix, in one line on standard error."""
    arguments = _arguments(argv)
    store = Store(arguments.store)
    try:
        if not arguments.store.is_dir():
            raise ArtefactError(f"{arguments.store}: there is no such store; give --store, or run an experiment first")
        if arguments.command == "ls":
            return _list(store, arguments.runs)
        if arguments.command == "verify":
            return _verify(store, arguments.runs)
        return _remove(store, arguments)
    except PruningError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(f"{error.filename or arguments.store}: {error.strerror or error}; give access")


def _list(store: Store, runs: Path) -> int:
    entries = inventory(store, runs)
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "key", "size", "age", "needed", "what"):
        table.add_column(name, justify="right" if name in ("size", "age") else "left", no_wrap=name == "key")
    for entry in entries:
        said = f"damaged: {entry.damage}" if entry.damage else entry.words
        cells = (entry.artefact.kind, entry.artefact.key, decimal(entry.size), age(entry.made))
        table.add_row(*cells, "yes" if entry.needed else "no", Text(said))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for path, busy in unfinished(store):
        console.print(Text(f"{path}: {_state(path, busy, entries)}"), soft_wrap=True)
    for path in kept_aside(store):
        console.print(Text(f"{path}: was damaged, and has been made again"), soft_wrap=True)
    idle = [entry for entry in entries if not entry.needed]
    total, spare = (decimal(sum(entry.size for entry in some)) for some in (entries, idle))
    console.print(Text(f"{len(entries)} artefacts, {total}; {len(idle)} of them, {spare}, no row below {runs} needs"))
    return 0


def _state(unfinished: Path, busy: bool, entries: Sequence[Entry]) -> str:
    if busy:
        return "a process is at work on it"
    complete = any(f"{e.artefact.kind}-{e.artefact.key}{SCRATCH}" == unfinished.name for e in entries)
    continued = unfinished.name.endswith(SCRATCH) and not complete
    return "left by a process that ended" + ("; a repetition goes on with it" if continued else "")


def _verify(store: Store, runs: Path) -> int:
    damaged = 0
    entries = inventory(store, runs)
    for entry in entries:
        try:
            if entry.damage:
                raise ArtefactError(entry.damage)
            for name in entry.artefact.files:
                entry.artefact.file(name)
        except ArtefactError as error:
            damaged += 1
            print(error)
    print(f"{len(entries)} artefacts, {damaged} damaged")
    return 1 if damaged else 0


def _remove(store: Store, arguments: argparse.Namespace) -> int:
    if not (arguments.keys or arguments.unreferenced or arguments.unfinished or arguments.damaged):
        raise ArtefactError("rm: nothing to remove: give keys, --unreferenced, --unfinished or --damaged")
    entries = inventory(store, arguments.runs)
    chosen = [_one(entries, key) for key in arguments.keys]
    if arguments.unreferenced:
        chosen += [entry for entry in entries if not entry.needed and entry not in chosen]
    for entry in chosen:
        others = [other for other in entries if entry.artefact.key in other.parents and other not in chosen]
        if (entry.needed or others) and not arguments.force:
            who = f"{others[0].artefact.kind} {others[0].artefact.key}" if others else f"rows below {arguments.runs}"
            raise ArtefactError(f"{entry.artefact.kind} {entry.artefact.key}: {who} come from it; add --force")
    removed = [entry for entry in chosen if _take(store, entry)]
    left = [path for path, _ in unfinished(store) if arguments.unfinished and free(store, path)]
    aside = kept_aside(store) if arguments.damaged else []
    for path in (*left, *aside):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    size = decimal(sum(entry.size for entry in removed))
    besides = [f"{len(paths)} {what}" for paths, what in ((left, "unfinished"), (aside, "damaged")) if paths]
    print(", ".join([f"removed {len(removed)} artefacts, {size}", *besides]))
    return 0


def _take(store: Store, entry: Entry) -> bool:
    """Remove an artefact: move it away in one step first, so that a kill leaves no half of it in place."""
    kind, key = entry.artefact.kind, entry.artefact.key
    with at_once(store.lock(kind, key)) as alone:
        if alone:
            aside = store.temporary(kind, key)
            entry.artefact.folder.rename(aside / "removed")
            shutil.rmtree(aside)
        else:
            print(f"{kind} {key}: a process holds it, it stays")
        return alone


def _one(entries: Sequence[Entry], key: str) -> Entry:
    found = [entry for entry in entries if f"{entry.artefact.kind}/{entry.artefact.key}".startswith(key)]
    found += [entry for entry in entries if entry.artefact.key.startswith(key)]
    if len(found) != 1:
        many = "no artefact has this key" if not found else f"{len(found)} artefacts begin so"
        raise ArtefactError(f"{key}: {many}; see `python -m experiments.store ls`")
    return found[0]


_LEFT = "what processes that ended have left; on a disk without shared locks, wait for the runs of other machines"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.store", description="What a store of artefacts holds, and whether it is sound."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, said in (
        ("ls", "list artefacts, in words"),
        ("rm", "remove artefacts"),
        ("verify", "check every file against its checksum"),
    ):
        command = commands.add_parser(name, help=said, description=said)
        command.add_argument("--store", type=Path, default=Path("runs/store"), help="default: %(default)s")
        command.add_argument("--runs", type=Path, default=Path("runs"), help="where rows are, default: %(default)s")
        if name == "rm":
            command.add_argument("keys", nargs="*", help="keys, their first digits, or kind/key")
            command.add_argument("--unreferenced", action="store_true", help="all that no row needs")
            command.add_argument("--unfinished", action="store_true", help=_LEFT)
            command.add_argument("--damaged", action="store_true", help="what was damaged and has been made again")
            command.add_argument("--force", action="store_true", help="also what others need: it is made again")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
