"""The command as a user meets it: files, table, exit status, and mistakes in one line."""

import csv
import io
import math
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from experiments import records
from experiments.report import main, table
from experiments.results import statistics
from experiments.results.figures.axes import TIMES
from experiments.results.gallery import FigureOptions, gallery
from tests.commands import command

ACCURACY = {0.5: 0.96, 0.1: 0.93, 0.01: 0.5}


def sweep(folder: Path, scorers=("magnitude", "random"), seeds=(0, 1, 2), config=None) -> Path:
    """Rows as `experiments.run` writes them: a dense network and three densities, for every scorer and seed."""
    for scorer in scorers:
        for seed in seeds:
            shared = {"format": 1, "run": f"{scorer}-{seed}", "scorer": scorer, "model": "lenet", "data": "digits"}
            shared |= {"seed": seed, "dense": f"network-{seed}", "config": {"seed": seed, **(config or {})}}
            rows = [shared | {"level": 0, "round": 0, "rounds": 0, "requested_density": 1.0, "density": 1.0}]
            rows[0] |= {"test_accuracy": 0.97 + seed / 1000, "test_loss": 0.1}
            for level, (density, accuracy) in enumerate(ACCURACY.items(), start=1):
                row = {"level": level, "round": 1, "rounds": 1, "requested_density": density, "density": density}
                row |= {"test_accuracy": accuracy + seed / 100, "test_loss": 1 - accuracy}
                rows.append(shared | row)
            records.write(folder / shared["run"], rows)
    return folder


def test_the_files_and_their_numbers(tmp_path, capsys):
    sweep(tmp_path)
    assert main([str(tmp_path)]) == 0

    stems = ("accuracy_compression", "accuracy_sparsity", "accuracy_difference")
    names = {f"{stem}.{suffix}" for stem in stems for suffix in ("pdf", "png", "csv")} | {"report.html"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    printed = capsys.readouterr().out.splitlines()
    assert set(printed[-10:]) == {str(tmp_path / name) for name in names}
    skipped = [
        line for line in printed if line.startswith("not drawn: ")
    ]  # these rows tell neither layers nor networks
    assert [line.split(": ")[1] for line in skipped] == ["layers", "overlap", "weights", "training"]

    summary = statistics.summarise(records.read(tmp_path))
    for x in ("compression", "sparsity"):
        written = pd.read_csv(tmp_path / f"accuracy_{x}.csv")
        assert written["method"][0] == "dense"
        assert written[["n", "mean", "sparsity", "compression"]].values.tolist()[0] == [3, pytest.approx(0.971), 0, 1]
        rest = written[1:].reset_index(drop=True)
        assert rest["seeds"].tolist() == ["0 1 2"] * 6
        pd.testing.assert_frame_equal(rest.drop(columns="seeds"), summary.drop(columns="seeds"), check_dtype=False)


def test_another_value_and_another_folder(tmp_path, capsys):
    sweep(tmp_path / "runs")
    output = tmp_path / "not" / "there" / ("long" * 40)
    assert main([str(tmp_path / "runs"), "--value", "test_loss", "--output", str(output)]) == 0
    assert str(output / "loss_sparsity.csv") in capsys.readouterr().out.splitlines()
    stems = {"loss_compression", "loss_sparsity", "loss_difference", "report"}
    assert {path.stem for path in output.iterdir()} == stems
    assert not [path for path in (tmp_path / "runs").iterdir() if path.is_file()]


def test_a_column_is_no_path(tmp_path):
    """A row may hold any key; as a file name it stays inside the folder."""
    frame = records.read(sweep(tmp_path / "runs")).rename(columns={"test_loss": "../test/loss"})
    written, _ = gallery(frame, FigureOptions("../test/loss", axes=["sparsity"]), tmp_path / "figures")
    assert {path.parent for path in written} == {tmp_path / "figures"}


def rendered(folder: Path, width: int, value: str = "test_accuracy", encoding: str = "utf-8") -> list[str]:
    frame = records.read(folder)
    summary, dense = statistics.summarise(frame, value), statistics.dense(frame, value)
    console = Console(width=width, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115  # closed below
    with console.file:
        console.print(table(summary, dense, value, encoding))
        return console.export_text().splitlines()


def test_the_table_by_hand(tmp_path):
    """Accuracies a, a + 1 and a + 2 points: mean a + 1, half of the interval 4.303 / √3 = 2.48."""
    lines = [line.split() for line in rendered(sweep(tmp_path), 80) if line.strip()]
    assert lines[0] == ["asked", "density", "sparsity", "compression", "method", "n", "Test", "accuracy", "(%)"]
    assert lines[2:9] == [
        ["1", "1", "0", "%", f"1{TIMES}", "dense", "3", "97.10", "±", "0.25"],
        ["0.5", "0.5", "50", "%", f"2{TIMES}", "magnitude", "3", "97.00", "±", "2.48"],
        ["random", "3", "97.00", "±", "2.48"],
        ["0.1", "0.1", "90", "%", f"10{TIMES}", "magnitude", "3", "94.00", "±", "2.48"],
        ["random", "3", "94.00", "±", "2.48"],
        ["0.01", "0.01", "99", "%", f"100{TIMES}", "magnitude", "3", "51.00", "±", "2.48"],
        ["random", "3", "51.00", "±", "2.48"],
    ]


def test_one_seed_has_no_interval_in_the_table(tmp_path):
    lines = rendered(sweep(tmp_path, seeds=(1,)), 80)
    assert not [line for line in lines if re.search(r"\d ± ", line)]
    assert [line.split()[-2:] for line in lines if "dense" in line] == [["1", "97.10"]]


def test_losses_are_not_percent(tmp_path):
    assert [line.split()[-3:] for line in rendered(sweep(tmp_path), 80, "test_loss") if "0.01" in line] == [
        ["0.5000", "±", "0.0000"]
    ]


LONG = {"recovery": {"epochs": 20}, "scorer": {"hidden": [300, 100], "tag": "[/red]"}}


def test_nothing_is_cut_off_and_nothing_in_a_label_is_markup(tmp_path, capsys):
    # Another method of the same name, so that every option of the first appears in its label.
    plain = records.read(sweep(tmp_path / "elsewhere", ("magnitude",)))
    for run, rows in plain.groupby("run"):
        records.write(tmp_path / "runs" / str(run), rows.assign(run=f"plain-{run}").to_dict("records"))
    sweep(tmp_path / "runs" / "long", ("magnitude",), config=LONG)
    tmp_path = tmp_path / "runs"
    wide, narrow = rendered(tmp_path, 120), rendered(tmp_path, 80)
    label = "magnitude (hidden=[300, 100], tag=[/red], recovery.epochs=20)"
    assert any(label in line for line in rendered(tmp_path, 200))
    for lines, width in ((wide, 120), (narrow, 80)):
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)
        header = next(line for line in lines if "method" in line)
        column = slice(header.index("method"), header.index(" n "))
        cells = "".join("".join(line[column].split()) for line in lines)
        assert cells.count(label.replace(" ", "")) == 3
        for number in ("97.10", "97.00", "94.00", "51.00"):
            assert any(f"{number} ± " in line for line in lines)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("\n".join(wide))  # a pipe: 120 columns


def test_a_terminal_without_unicode_gets_ascii(tmp_path):
    summary = "\n".join(line for line in rendered(sweep(tmp_path), 80, encoding="ascii"))
    assert "+/-" in summary
    assert "±" not in summary
    assert TIMES not in summary


# Mistakes


def fails(arguments: list[str], capsys) -> str:
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    return streams.err


def test_mistakes_are_one_line(tmp_path, capsys):
    assert "no such folder" in fails([str(tmp_path / "missing")], capsys)
    assert "two lines" in fails([str(tmp_path / "two\nlines")], capsys)
    assert "no rows.jsonl" in fails([str(tmp_path)], capsys)
    sweep(tmp_path)
    assert 'no column "accuracy"' in fails([str(tmp_path), "--value", "accuracy"], capsys)
    assert "not a finite number" in fails([str(tmp_path), "--value", "scorer"], capsys)
    (tmp_path / "magnitude-0" / "rows.jsonl").write_text('{"format": 1,\n')
    assert "line 1" in fails([str(tmp_path)], capsys)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    sweep(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    message = fails([str(tmp_path / "runs"), "--output", str(tmp_path / "file")], capsys)
    assert str(tmp_path / "file") in message

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    message = fails([str(tmp_path / "runs")], capsys)
    assert "No space left on device" in message
    assert str(tmp_path / "runs") in message


def test_arguments_that_do_not_exist_end_with_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--nonsense"])
    assert caught.value.code == 2


CLOSED = """
import os, runpy, sys
end, begin = os.pipe()
os.close(end)
os.dup2(begin, 1)
runpy.run_module("experiments.report", run_name="__main__", alter_sys=True)
"""


def test_the_command_through_a_pipe_that_closes_early(tmp_path):
    """`python -m experiments.report FOLDER | head -1`: no traceback, and the files are there."""
    sweep(tmp_path)
    done = command(tmp_path, "-c", CLOSED, str(tmp_path))
    assert not re.search("Traceback|BrokenPipe", done.stderr), done.stderr
    with (tmp_path / "accuracy_sparsity.csv").open() as file:
        assert len(list(csv.reader(file))) == 8


def test_the_table_tells_what_was_got_beside_what_was_asked():
    """Coarse units: 0.3 was asked, 0.6341 of the weights are there."""
    columns = {"n": 1, "mean": 0.9, "std": math.nan, "low": math.nan, "high": math.nan, "seeds": (0,)}
    place = {"requested_density": 0.3, "density": 0.6341, "sparsity": 0.3659, "compression": 1 / 0.6341}
    summary = pd.DataFrame([{"method": "magnitude", **place, **columns}])
    console = Console(width=100, record=True, file=io.StringIO(), highlight=False)
    console.print(table(summary, {}, "test_accuracy"))
    (line,) = [line.split() for line in console.export_text().splitlines() if "magnitude" in line]
    assert line[:5] == ["0.3", "0.6341", "37", "%", f"1.58{TIMES}"]
