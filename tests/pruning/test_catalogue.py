"""The catalogue says what is true: of every scorer's file, its needs, its passes, and the README's table."""

from pathlib import Path

import pytest
import torch
import yaml

from pruning import Evidence
from pruning.errors import ScoreError
from pruning.scorers.catalogue import CATALOGUE, Entry, table
from tests.pruning.cases import reference_case

ROOT = Path(__file__).parents[2]
OWN = [entry for entry in CATALOGUE if entry.needs != "a scorer"]
OUTPUTS = 3


def test_every_scorers_file_is_in_the_catalogue_with_its_function() -> None:
    targets = {}
    for path in (ROOT / "experiments" / "conf" / "scorer").glob("*.yaml"):
        written = yaml.safe_load(path.read_text())
        targets[path.stem] = written.get("scorer", written) if "defaults" in written else written
    assert {entry.name for entry in CATALOGUE} == set(targets)
    for entry in CATALOGUE:
        function = getattr(entry.scorer, "func", entry.scorer)
        assert targets[entry.name]["_target_"] == f"pruning.scorers.{function.__name__}"
    assert all(entry.summary for entry in CATALOGUE)


def elsewhere(case: Evidence) -> dict[str, torch.Tensor]:
    return {name: p.detach() + 1 for name, p in case.parameters.items()}


def passes(entry: Entry, batches: int) -> tuple[int, int]:
    """Forward passes through the first layer, and gradients that come back to its outputs."""
    case = reference_case(6)
    forward, backward = [], []

    def count(module, inputs, outputs) -> None:
        forward.append(1)
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: backward.append(1))

    case.model[0].register_forward_hook(count)
    many = list(case.batches) * batches
    entry.scorer(Evidence(case.model, case.parameters, many, case.loss, initial=elsewhere(case)))
    return len(forward), len(backward)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_passes_are_as_told(entry: Entry) -> None:
    two, three = passes(entry, 2), passes(entry, 3)
    a_batch = three[0] - two[0], three[1] - two[1]
    if entry.forward == "1 in all":
        assert (two, a_batch) == ((1, 1), (0, 0))
    else:
        assert a_batch == (int(entry.forward), OUTPUTS if entry.backward == "C" else int(entry.backward))


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_needs_are_as_told(entry: Entry) -> None:
    case = reference_case(6)
    without = {
        "nothing": Evidence(case.model, case.parameters),
        "initial weights": Evidence(case.model, case.parameters, initial=elsewhere(case)),
        "a shape": Evidence(case.model, case.parameters, case.batches),
    }
    enough = without.get(entry.needs, case)
    assert set(entry.scorer(enough)) == set(case.parameters)
    for needs, evidence in without.items():
        if entry.needs not in (needs, "nothing"):
            with pytest.raises(ScoreError, match="give"):
                entry.scorer(evidence)


def test_the_readme_shows_the_catalogue() -> None:
    assert table() in (ROOT / "README.md").read_text(), (
        "python -c 'from pruning.scorers.catalogue import *; print(table())'"
    )
