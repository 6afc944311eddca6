"""Judged by the model's own rounding: float64 decides where float32 cannot, and what is wrong is still refused."""

import pytest
import torch
from torch import nn

from pruning.errors import StructureError
from pruning.structure import TOLERANCE, remove, trace, verify
from pruning.structure.removing import remove as removing
from pruning.structure.removing.verifying import difference, judged
from tests.pruning.structure.masking import masks_of, some_kept


class Cancelling(nn.Module):
    """Two readers of the same huge hidden units, of which one takes away what the other brings, but for a little."""

    def __init__(self, size: float = 3e4, code: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size, self.code = size, code
        self.first, self.norm, self.plus, self.minus = (
            nn.Linear(6, 256),
            nn.LayerNorm(6),
            nn.Linear(256, 5),
            nn.Linear(256, 5),
        )
        with torch.no_grad():
            self.minus.weight.copy_(-self.plus.weight + 1e-4 * torch.randn(5, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.size * self.first(self.norm(x)).square()
        if self.code is not None:
            hidden = hidden.to(self.code)
        return self.plus(hidden) + self.minus(hidden)


def removed(model, dtype=torch.float32, seed=0):
    """Structure, masks and inputs of a removal of some units."""
    model, inputs = model.to(dtype), torch.randn(4, 6).to(dtype)
    structure = trace(model, inputs)
    assert [family.size for family in structure.families] == [256]
    return structure, masks_of(structure, some_kept(structure, seed)), inputs


def broken(monkeypatch, relative, name="plus.weight"):
    """Removal after which the values of a tensor are wrong by so much of each."""
    right = removing.sliced

    def wrong(structure, kept, tensor_name, tensor):
        found = right(structure, kept, tensor_name, tensor)
        return nn.Parameter(found.detach() * (1 + relative)) if tensor_name == name else found

    monkeypatch.setattr(removing, "sliced", wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_exact_removal_that_float32_refuses_is_accepted_by_float64(dtype):
    model = Cancelling(3e4 if dtype != torch.float16 else 3e3)
    structure, masks, inputs = removed(model, dtype)
    small = remove(model, masks, structure)
    assert difference(model, masks, small, inputs) > TOLERANCE  # float32, in which halves are compared, refuses it
    assert verify(model, masks, small, inputs) < 1e-9
    assert judged(model, masks, small, inputs).double
    assert small.first.out_features < 256
    assert small.first.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["first.weight", "first.bias", "plus.weight", "minus.weight"])
def test_a_wrong_removal_is_refused_by_name_among_huge_activations(monkeypatch, dtype, name):
    """Wrong by 1e-4 of the outputs: one reader's part is thousands of times as large as the outputs are."""
    model = Cancelling()
    structure, masks, _ = removed(model, dtype)
    broken(monkeypatch, 1e-2 if "first" in name else 1e-5 if dtype == torch.float64 else 8e-3, name)
    with pytest.raises(StructureError, match=rf"^{name.split('.')[0]}: .* differ by [\d.e+-]+ of the largest, "):
        remove(model, masks, structure)


@pytest.mark.parametrize("relative", [1e-4, 3e-4])
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_outputs_that_are_wrong_by_ten_thousandths_are_refused(monkeypatch, relative, size):
    model = nn.Sequential(Cancelling(size), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    model[3].bias.data.zero_()
    inputs = torch.randn(4, 6)
    structure = trace(model, inputs)
    masks = masks_of(structure, some_kept(structure, 0))
    assert remove(model, masks, structure) is not None
    broken(monkeypatch, relative, "3.weight")
    small = remove(model, masks, structure, verified=False)
    assert verify(model, masks, small, inputs) == pytest.approx(relative, rel=0.01)
    with pytest.raises(StructureError, match=r"^3: .* differ by 0.0003|^3: .* differ by 0.0001"):
        remove(model, masks, structure)


def test_what_float64_cannot_decide_is_refused_with_the_reason():
    model = Cancelling(code=torch.float32)
    structure, masks, inputs = removed(model)
    with pytest.raises(StructureError, match=r"float64 could not decide: .*dtype") as caught:
        remove(model, masks, structure)
    assert "\n" not in str(caught.value)
    small = remove(model, masks, structure, verified=False)
    assert verify(model, masks, small, inputs) == difference(model, masks, small, inputs) > TOLERANCE


def test_what_overflows_in_its_own_precision_is_not_accepted():
    model = Cancelling(3e38)
    structure, masks, _ = removed(model)
    with pytest.raises(StructureError, match="differ by inf"):
        remove(model, masks, structure)


def test_float32_decides_where_it_can():
    model = Cancelling(1e-3)
    model.minus.weight.data.normal_()
    structure, masks, inputs = removed(model)
    assert not judged(model, masks, remove(model, masks, structure), inputs).double
