"""python -m experiments.contamination FOLDER: is the test part in what networks have seen, and what if it is left out?

    python -m experiments.contamination runs/topics
    python -m experiments.contamination runs/topics --n 8 13 --metric accuracy
    python -m experiments.contamination runs/language_model --against notes.txt more.txt

A test text overlaps where it shares n tokens in a row with a text of the training part, of which calibration and
scoring are a draw, or with the files of `--against`, such as what a model was pretrained on. Overlap is exact. Data
that are no text overlap where a whole example is there twice. Every network of the runs is then measured on the test
part with and without what overlaps.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import records
from experiments.configuration import validate
from experiments.data.text import tokens_of
from experiments.evaluation.contamination import Overlap, Tokens, overlaps, without
from experiments.records.values import Value, resolve, resolve_metric
from experiments.results.exclusions import measured
from experiments.running.setting import Setting
from experiments.runtime.errors import report_error
from experiments.store import Store
from experiments.store.retrieval import network_of
from experiments.tasks import evaluate
from pruning.errors import DataError, PruningError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 for an error that the user can fix, in one line on standard error (2: argparse)."""
    asked = _arguments(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        frame = records.read(asked.folder)
        value = resolve(frame) if asked.metric is None else resolve_metric(frame, asked.metric)
        frame, left_out = measured(frame, value)
        rows = [row for row in records.as_dicts(frame) if not isinstance(row.get("control"), str)]
        rows = [row for row in rows if not math.isnan(row[value.column])]  # networks that diverged
        for setting, those in _by_data(rows, asked.store):
            more = [] if asked.against is None else _read(setting, asked.against)
            found = overlaps(setting.splits, asked.n, setting.task.targets, more)
            console.print(_summary(setting, found))
            for one in found:
                if one.flags.any():
                    console.print(_numbers(setting, those, one, value))
        for line in left_out:
            console.print(Text(f"left out: {line}"))
    except PruningError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(f"{error.filename or asked.folder}: {error.strerror or error}")
    return 0


def _by_data(
    rows: Sequence[Mapping[str, Any]], store: Path | None
) -> Iterator[tuple[Setting, list[Mapping[str, Any]]]]:
    """Rows by the data that they were tested on, with the setting of the first run of each."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(repr((row["config"]["data"], row["config"]["task"])), []).append(row)
    for those in groups.values():
        config = validate(OmegaConf.create(those[0]["config"]))
        yield Setting(config, Store(store or Path(config.store)), alone=False), those


def _read(setting: Setting, files: Sequence[Path]) -> list[Tokens]:
    """Files as tokens of the data's model."""
    known = {name: setting.config.data["load"].get(name) for name in ("name", "package", "gguf_file")}
    tokens = tokens_of(str(setting.config.data["name"]), **known)
    return [np.asarray(tokens(_text(file), verbose=False)["input_ids"], dtype=np.int64) for file in files]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"--against {file}: is no text in UTF-8 ({error}): give text files") from error


def _summary(setting: Setting, found: Sequence[Overlap]) -> Table:
    """How many test items overlap."""
    table = Table(box=SIMPLE_HEAD, title=f"{setting.config.data['name']}: test items that were seen")
    for name in ("shared", "test items", "overlap", "share"):
        table.add_column(name, justify="left" if name == "shared" else "right")
    for one in found:
        count = int(one.flags.sum())
        table.add_row(one.words, f"{len(one.flags):,}", f"{count:,}", f"{100 * count / len(one.flags):.2f} %")
    return table


def _numbers(setting: Setting, rows: Sequence[Mapping[str, Any]], one: Overlap, value: Value) -> Table:
    """The value of every network with and without what overlaps."""
    clean = without(setting.splits.test, one.flags)
    table = Table(box=SIMPLE_HEAD, title=f"{value.title}, with and without what shares {one.words}")
    for name in ("run", "density", "all", "without", "difference"):
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for _, of_run in groupby(rows, lambda row: row["run"]):
        levels = list(of_run)
        run = replace(setting, whole=validate(OmegaConf.create(levels[0]["config"])), made={})
        for row in levels:
            model = network_of(row, run.new_model(), setting.store.root)
            clear = evaluate(run.task, model, clean)[value.column.removeprefix("test_")]
            numbers = [row[value.column], clear, clear - row[value.column]]
            shown = [f"{value.scale * number:.{value.digits}f}" for number in numbers]
            table.add_row(str(row["run"]), f"{row['density']:.4g}", *shown)
    return table


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of runs")
    parser.add_argument("--n", type=int, nargs="+", default=[8, 13], help="tokens in a row (default: 8 and 13)")
    parser.add_argument("--against", type=Path, nargs="+", help="files of text that were seen too")
    parser.add_argument("--store", type=Path, help="where networks lie (default: where the runs put them)")
    parser.add_argument("--metric", help="what to measure (default: the task's headline)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
