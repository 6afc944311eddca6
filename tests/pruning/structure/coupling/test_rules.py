"""Operators one by one: a sum over channels is free only where the operator gives exact zeros for zeros."""

import pytest
import torch
from torch import nn

from pruning.structure import trace
from pruning.structure.coupling.rules import elementwise


def operators(count):
    """Those of the elementwise rules that take `count` tensors and nothing else."""
    for name in elementwise.RULES:
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            operator = getattr(packet, overload)
            kinds = [str(a.type) for a in operator._schema.arguments if not a.has_default_value()]
            if kinds == ["Tensor"] * count and [str(r.type) for r in operator._schema.returns] == ["Tensor"]:
                yield operator


class Summed(nn.Module):
    def __init__(self, operator, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 5) for _ in range(count))
        self.operator = operator

    def forward(self, x):
        return self.operator(*(layer(x) for layer in self.layers)).float().sum(1)


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_summed_freely_keeps_zeros(count):
    free, asked = 0, 0
    for operator in operators(count):
        zeros = [torch.zeros(4)] * count
        try:
            found = operator(*zeros)
        except (RuntimeError, NotImplementedError):  # of integers alone
            continue
        asked += 1
        model = Summed(operator, count).eval()
        if trace(model, torch.randn(2, 3)).families:
            free += 1
            assert torch.equal(found.float(), torch.zeros(4)), operator
    assert asked > free > 10
