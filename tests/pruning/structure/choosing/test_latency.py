"""The table of times by which a budget in milliseconds is met."""

import pytest
import torch

from pruning.errors import StructureError
from pruning.structure import measure_latency, trace
from tests.pruning.structure.masking import some_kept
from tests.pruning.structure.zoo import build


def test_the_table_of_times_never_says_that_fewer_units_cost_more():
    model, inputs = build("flatten")
    structure = trace(model, inputs)
    table = measure_latency(model, structure, repeats=3)
    assert [counts[-1] for counts in table.counts] == [family.size for family in structure.families]
    assert all(list(saved) == sorted(saved, reverse=True) and saved[-1] == 0 for saved in table.saved)
    assert table.cost(some_kept(structure, 0)) <= table.whole
    assert table.threads == torch.get_num_threads()
    with pytest.raises(StructureError, match="shares"):
        measure_latency(model, structure, shares=(1.5,))
