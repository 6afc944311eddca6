"""The command as a reader meets it: numbers as SciPy has them, sentences that say no more than the numbers do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import records
from experiments.compare import main

DENSITIES = (0.5, 0.1, 0.02)
CURVES = {
    "magnitude": [[0.95, 0.93, 0.90], [0.94, 0.94, 0.88], [0.96, 0.92, 0.89]],
    "random": [[0.95, 0.80, 0.12], [0.95, 0.78, 0.13], [0.955, 0.81, 0.11]],
    "taylor": [[0.951, 0.93, 0.89], [0.939, 0.945, 0.885], [0.96, 0.92, 0.892]],
}


def sweep(folder: Path, curves=CURVES, dense="network", **config) -> Path:
    for scorer, seeds in curves.items():
        for seed, accuracies in enumerate(seeds):
            shared = {"format": 1, "run": f"{scorer}-{seed}", "scorer": scorer, "model": "lenet", "data": "digits"}
            shared |= {"seed": seed, "dense": f"{dense}-{seed}", "round": 1, "rounds": 1}
            shared |= {"config": {"seed": seed, "data": {"classes": 10}, **config}}
            levels = [(1.0, 0.97), *zip(DENSITIES, accuracies, strict=True)]
            rows = [
                shared | {"level": level, "requested_density": at, "density": at, "test_accuracy": accuracy}
                for level, (at, accuracy) in enumerate(levels)
            ]
            records.write(folder / shared["run"], rows)
    return folder


def printed(arguments: list[str], capsys) -> str:
    assert main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def test_numbers_and_words(tmp_path, capsys):
    text = printed([str(sweep(tmp_path)), "--baseline", "magnitude"], capsys)
    good, bad = (np.array(CURVES[name])[:, 2] for name in ("magnitude", "random"))
    test = stats.ttest_rel(bad, good)
    half = 100 * (test.confidence_interval().high - (bad - good).mean())
    assert f"random 3 12.00 ± 2.48 {100 * (bad - good).mean():+.2f} ± {half:.2f} < 0.001" in text
    assert "random against magnitude: over the whole curve significantly lower" in text
    assert "significantly lower at density 0.1, 0.02; no significant difference at density 0.5." in text
    assert re.search(
        r"taylor against magnitude: over the whole curve no significant difference \(p = [01]\.\d+\);", text
    )
    assert "magnitude against" not in text
    assert re.search(r"random \d+\.\d\d -\d+\.\d\d ± \d+\.\d\d .{10,40}lower 0 % 33 %", text)  # one density in three


def test_wilcoxon_of_three_seeds_cannot_be_sure_and_says_so(tmp_path, capsys):
    text = printed([str(sweep(tmp_path)), "--baseline", "magnitude", "--test", "wilcoxon"], capsys)
    assert "significantly" not in text
    assert "3 seeds and 3 densities cannot come below p = 0.75 here." in text
    assert "and 3 seeds cannot come below p = 0.25)" in text


def test_densities_that_were_got_are_told_where_they_differ_from_those_asked_for(tmp_path, capsys):
    sweep(tmp_path)
    for path in tmp_path.glob("random-*/rows.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[-1]["density"] = 0.004
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = printed([str(tmp_path), "--baseline", "magnitude"], capsys)
    assert "those got are not (0.004 against 0.02 at 0.02)" in text
    assert text.count("those got are not") == 1


def test_set_ups_have_a_table_each(tmp_path, capsys):
    sweep(tmp_path / "a", {"magnitude": CURVES["magnitude"], "random": CURVES["random"]}, training={"epochs": 1})
    curves = {"magnitude": CURVES["taylor"], "random": CURVES["random"]}
    for path in sweep(tmp_path / "b", curves, "other", training={"epochs": 9}).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace('"run": "', '"run": "long-'))
    text = printed([str(tmp_path), "--baseline", "magnitude"], capsys)
    assert "dense (training.epochs=1): mean" in text
    assert "dense (training.epochs=9): mean" in text
    assert text.count("random against magnitude:") == 2


def test_markdown_and_latex_hold_the_same_cells(tmp_path, capsys):
    arguments = [str(sweep(tmp_path)), "--baseline", "magnitude", "--format"]
    assert main([*arguments, "markdown"]) == 0
    markdown = capsys.readouterr().out
    assert main([*arguments, "latex"]) == 0
    latex = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line]
    assert {len(row) for row in rows} == {8}
    assert len(rows) == (2 + 9) + (2 + 3)  # by density, and whole curves
    rows = [row for row in rows if set("".join(row)) != {"-", ":"}]
    body = [line for line in latex.splitlines() if "&" in line]
    signs = {r"$\pm$": "±", "$<$": "<", r"\%": "%", "$-$": "-"}
    for written, sign in signs.items():
        assert written in latex
        body = [line.replace(written, sign) for line in body]
    assert [[cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in body] == rows


def test_latex_escapes_what_it_would_read(tmp_path, capsys):
    curves = {r"my_scorer&{%}\#$~^": CURVES["random"], "magnitude": CURVES["magnitude"]}
    for place, (name, seeds) in enumerate(curves.items()):
        for path in sweep(tmp_path / str(place), {name.replace("/", ""): seeds}).glob("*/rows.jsonl"):
            assert path.exists()
    assert main([str(tmp_path), "--baseline", "magnitude", "--format", "latex"]) == 0
    escaped = r"my\_scorer\&\{\%\}\textbackslash \#\$\textasciitilde \textasciicircum "
    assert capsys.readouterr().out.count(escaped) == 4


def test_a_set_up_without_the_baseline_is_told_after_the_others(tmp_path, capsys):
    sweep(tmp_path / "a", {"magnitude": CURVES["magnitude"], "random": CURVES["random"]}, training={"epochs": 1})
    curves = {"taylor (x)": CURVES["taylor"], "random": CURVES["random"]}
    for path in sweep(tmp_path / "b", curves, "other", training={"epochs": 9}).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace('"run": "', '"run": "long-'))
    assert main([str(tmp_path), "--baseline", "magnitude"]) == 1
    streams = capsys.readouterr()
    assert "random against magnitude: over the whole curve significantly lower" in " ".join(streams.out.split())
    assert streams.err.startswith("error: dense (training.epochs=9): no method is called magnitude")
    assert streams.err.count("\n") == 1


def test_n_is_that_of_the_mean_and_pairs_are_told(tmp_path, capsys):
    sweep(tmp_path, {"magnitude": CURVES["magnitude"][:2], "random": CURVES["random"]})
    text = printed([str(tmp_path), "--baseline", "magnitude"], capsys)
    bad, good = (np.array(CURVES[name])[:, 1] for name in ("random", "magnitude"))
    assert re.search(
        rf"random 3 {100 * bad.mean():.2f} ± \d+\.\d\d {100 * (bad - good)[:2].mean():+.2f} ± \d+\.\d\d \(2 pairs\)",
        text,
    )


def test_a_method_at_other_densities_is_left_out_and_named(tmp_path, capsys):
    sweep(tmp_path, {"magnitude": CURVES["magnitude"], "random": CURVES["random"]})
    for path in sweep(tmp_path / "more", {"snip": CURVES["taylor"]}).glob("*/rows.jsonl"):
        text = path.read_text()
        for density in DENSITIES:
            text = text.replace(f'_density": {density}', f'_density": {density / 3}')
        path.write_text(text)
    text = printed([str(tmp_path), "--baseline", "magnitude"], capsys)
    assert "snip is not compared: it shares no seed at any density with magnitude." in text
    assert "random against magnitude: over the whole curve significantly lower" in text


def test_the_bootstrap_is_not_symmetric_and_not_printed_so(tmp_path, capsys):
    curves = {"magnitude": [[a, 0.9, 0.5] for a in (0.95, 0.94, 0.96, 0.95, 0.10)], "random": [[0.1, 0.1, 0.1]] * 5}
    text = printed([str(sweep(tmp_path, curves)), "--baseline", "magnitude", "--interval", "bootstrap"], capsys)
    low, high = re.search(r"magnitude 5 78\.00 \[(\d+\.\d+), (\d+\.\d+)\]", text).groups()
    assert 10 <= float(low) < 78 < float(high) <= 96
    assert "mean and 95 % bootstrap interval over n seeds" in text


def test_densities_that_cannot_be_tested_are_not_counted(tmp_path, capsys):
    seeds = [[0.9, 0.8 + n / 100, 0.5] for n in range(6)], [[0.8 - n / 500, 0.7 + n / 100, 0.4] for n in range(6)]
    sweep(tmp_path, {"magnitude": seeds[0], "random": seeds[1]})
    for path in tmp_path.glob("random-[1-5]/rows.jsonl"):
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
    text = printed([str(tmp_path), "--baseline", "magnitude", "--test", "wilcoxon"], capsys)
    assert "significantly lower at density 0.5" in text
    assert "cannot come below" not in text


@pytest.mark.parametrize("within", ["nan", "-1", "inf", "x"])
def test_within_is_a_number_of_points(tmp_path, capsys, within):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--baseline", "magnitude", f"--within={within}"])
    assert "--within" in capsys.readouterr().err


def test_brackets_in_labels_are_text(tmp_path, capsys):
    sweep(tmp_path, {"magnitude": CURVES["magnitude"]}, include=["[red]", "b"])
    for path in sweep(tmp_path / "more", {"magnitude": CURVES["random"]}).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace('"run": "', '"run": "other-'))
    text = printed([str(tmp_path), "--baseline", 'magnitude (include=["[red]", "b"])'], capsys)
    assert 'differences to magnitude (include=["[red]", "b"]) at' in text


def test_no_sparsity_is_critical_for_what_has_no_direction(tmp_path, capsys):
    losses = {"magnitude": [[0.2, 0.5, 0.9], [0.2, 0.6, 0.9]], "random": [[0.3, 0.6, 0.9], [0.3, 0.8, 0.9]]}
    for path in sweep(tmp_path, losses).glob("*/rows.jsonl"):
        path.write_text(path.read_text().replace("test_accuracy", "joules"))
    text = printed([str(tmp_path), "--baseline", "magnitude", "--value", "joules", "--within", "1"], capsys)
    assert "%" not in text.split("sparsity within 1 of dense")[1].split("area: mean")[0]


def test_one_method_alone_is_nothing_to_compare(tmp_path, capsys):
    sweep(tmp_path, {"magnitude": CURVES["magnitude"]})
    assert "magnitude is the only method" in fails([str(tmp_path), "--baseline", "magnitude"], capsys)


def fails(arguments: list[str], capsys) -> str:
    assert main(arguments) == 1
    streams = capsys.readouterr()
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    return streams.err


def test_mistakes_are_one_line(tmp_path, capsys):
    folder = str(sweep(tmp_path / "runs"))
    assert "no method is called snip" in fails([folder, "--baseline", "snip"], capsys)
    assert "no such folder" in fails([str(tmp_path / "missing"), "--baseline", "magnitude"], capsys)
    assert 'no column "loss"' in fails([folder, "--baseline", "magnitude", "--value", "loss"], capsys)
    sweep(tmp_path / "mixed", {"magnitude": CURVES["magnitude"]})
    sweep(tmp_path / "mixed" / "more", {"random": CURVES["random"]}, dense="other")
    assert "not the same dense network" in fails([str(tmp_path / "mixed"), "--baseline", "magnitude"], capsys)


@pytest.mark.parametrize("level", ["0", "1", "2"])
def test_a_level_of_significance_is_a_share(level, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--baseline", "magnitude", "--alpha", level])
    assert caught.value.code == 2
