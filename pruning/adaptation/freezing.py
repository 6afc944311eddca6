"""Freezing of a model for an adaptation, of which a model has one at a time."""

from collections.abc import Callable, Iterable

from torch import nn

from pruning.errors import AdaptationError

_MARK = "_adapted"
"""Attribute of a frozen parameter: by what, and the parameter's id, as files and some copies keep attributes."""


def check_free(model: nn.Module) -> None:
    """Raise `AdaptationError` where any parameter of `model` is frozen by an adaptation already."""
    for name, parameter in model.named_parameters():
        kind, of = vars(parameter).get(_MARK, ("", 0))
        if of == id(parameter):
            raise AdaptationError(
                f"{name}: has {kind} already, beside which no other adaptation is trained: end it first, by "
                "finish() or detach()"
            )


def freeze(model: nn.Module, trained: Iterable[nn.Parameter], kind: str) -> Callable[[], None]:
    """Let `trained` alone of the parameters of `model` be trainable.

    Args:
        kind: of adaptation, for `check_free`.

    Returns:
        What undoes it; again, it does nothing.
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = {id(parameter) for parameter in trained}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in chosen)
        setattr(parameter, _MARK, (kind, id(parameter)))

    def thaw() -> None:
        while before:
            parameter, required = before.popitem()
            parameter.requires_grad_(required)
            vars(parameter).pop(_MARK, None)

    return thaw
