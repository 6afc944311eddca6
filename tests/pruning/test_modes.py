"""Modes of modules are their own again, whatever happened."""

import pytest
from torch import nn

from pruning.modes import eval_mode, kept_modes


def mixed() -> tuple[nn.Module, list[bool]]:
    """A model in train mode with a frozen batch norm in eval mode, as in fine-tuning."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    return model, [True, True, True, False, True]


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_everything_is_in_eval_mode_within_and_as_before_afterwards():
    model, before = mixed()
    with eval_mode(model):
        assert modes(model) == [False] * 5
    assert modes(model) == before


@pytest.mark.parametrize("within", [eval_mode, kept_modes])
def test_modes_are_put_back_after_an_error(within):
    model, before = mixed()

    def fail():
        with within(model):
            model.train(not model.training)
            raise ValueError("of the pass")

    with pytest.raises(ValueError, match="of the pass"):
        fail()
    assert modes(model) == before


def test_modes_that_are_kept_are_not_changed_within():
    model, before = mixed()
    with kept_modes(model):
        assert modes(model) == before
        model.eval()
    assert modes(model) == before
