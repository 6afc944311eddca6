"""Published claims beside our numbers: what was said, what came out, what is accepted, and whether it holds."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.results import figures
from pruning.errors import PruningError

FOLDER = Path("runs/replications")


@dataclass(frozen=True)
class Claim:
    """One published statement and our number for it.

    Attributes:
        text: the statement, with its unit.
        paper: what the paper says, as it is printed; where it says no more than an order: that.
        ours: our number. NaN, as of a network that diverged, is outside every range.
        low, high: the accepted range, ends included; None: open on this side, both None: shown but not judged.
        spread: of `ours` over the seeds, as it is printed.
    """

    text: str
    paper: str
    ours: float
    low: float | None = None
    high: float | None = None
    spread: str = ""

    @property
    def verdict(self) -> str:
        """ "ok", "outside", or "not judged"."""
        if self.low is None and self.high is None:
            return "not judged"
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return "ok" if low <= self.ours <= high else "outside"

    @property
    def tolerance(self) -> str:
        """The accepted range in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:.3g} to {self.high:.3g}"
        if self.low is not None:
            return f"at least {self.low:.3g}"
        return "" if self.high is None else f"at most {self.high:.3g}"


@dataclass(frozen=True)
class Study:
    """Findings of a replication: its claims, one row a measurement, a figure, and lines to print above the claims."""

    title: str
    claims: Sequence[Claim]
    rows: pd.DataFrame
    figure: Figure
    notes: str = ""


def arguments(description: str | None, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The options that all replications have: folder, seeds, threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where a folder of this replication is made")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--threads", type=int, default=1, help="sums, so last digits, depend on it")
    return parser


def run(name: str, study: Callable[[argparse.Namespace], Study], options: argparse.Namespace) -> int:
    """Run `study`, write and print its findings; 0 if all claims hold, 1 if not, 2 for an error the user can fix."""
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    folder = options.folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before an hour of work, not after it
        found = study(options)
        write(folder, name, found.rows, found.figure)
        seeds = " ".join(map(str, options.seeds))
        how = f"seeds {seeds}, {options.threads} thread(s), {time.perf_counter() - start:.0f} s"
        return report("\n".join(filter(None, (found.title, how, found.notes))), found.claims, folder)
    except PruningError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{name}: {error.filename or folder}: {error.strerror or error}: name another --folder", file=sys.stderr)
    return 2


def write(folder: Path, name: str, rows: pd.DataFrame, figure: Figure) -> list[Path]:
    """`rows` as CSV and `figure` as PNG and PDF, all three called `name`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, folder / name, rows)


def report(title: str, claims: Sequence[Claim], folder: Path) -> int:
    """Print the claims as a table, write them to claims.json in `folder`; 1 if one is outside its range, else 0."""
    # Text, as rich would take "[min, max]" for a style
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("claim", "paper", "ours", "tolerance", ""):
        table.add_column(column, justify="left" if column == "claim" else "right", no_wrap=column != "claim")
    for claim in claims:
        ours = f"{claim.ours:.3g} {claim.spread}".strip()
        table.add_row(*map(Text, (claim.text, claim.paper, ours, claim.tolerance, claim.verdict)))
    Console(width=130, highlight=False).print(table)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [asdict(claim) | {"verdict": claim.verdict} for claim in claims]
    for line in lines:
        line["ours"] = line["ours"] if math.isfinite(line["ours"]) else None  # JSON has no word for it
    (folder / "claims.json").write_text(json.dumps(lines, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(claim.verdict == "outside" for claim in claims))


def span(values: Sequence[float], digits: int = 2) -> str:
    """The smallest and the largest value, as a spread: "[1.20, 1.40]"."""
    return f"[{min(values):.{digits}f}, {max(values):.{digits}f}]"
