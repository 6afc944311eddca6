"""Shapes of examples, checked when a model is built rather than in its first batch."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.errors import ModelError


def example_shape(model: str, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
    """The sizes of one example as a tuple, of one dimension or more.

    Raises:
        ModelError: no size, a size that is no positive integer, or fewer than one output.
    """
    sizes = tuple(shape)
    if not sizes or not all(is_count(size) for size in sizes):
        raise ModelError(
            f"{model}: shape={list(shape)} is no shape of an example: give positive integers, such as [1, 28, 28]"
        )
    if not is_count(outputs):
        raise ModelError(f"{model}: outputs={outputs} is no number of outputs: give a positive integer, such as 10")
    return sizes


def image_shape(model: str, shape: Sequence[int], outputs: int, smallest: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of one image of at least `smallest` x `smallest` pixels.

    Raises:
        ModelError: as `example_shape`, or not three sizes, or an image too small to pass through the model's pooling.
    """
    sizes = example_shape(model, shape, outputs)
    if len(sizes) != 3:
        raise ModelError(f"{model}: shape={list(shape)} is no image: give [channels, height, width], or use model=mlp")
    channels, height, width = sizes
    if min(height, width) < smallest:
        raise ModelError(
            f"{model}: images of {height}x{width} pixels are too small, at least {smallest}x{smallest} are needed: "
            "use larger images (data=mnist5k), or a model without pooling (model=lenet_300_100)"
        )
    return channels, height, width


def is_count(value: object) -> bool:
    """Whether `value` is a positive integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def scaled(model: str, width: float, *sizes: int) -> list[int]:
    """`sizes`, numbers of hidden units or channels, times `width`, each rounded and at least 1.

    Raises:
        ModelError: a width that is not above 0.
    """
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0.0 < width < float("inf"):
        raise ModelError(
            f"{model}: width={width!r} is no factor of its hidden widths: give a number above 0, such as 1"
        )
    return [max(1, round(width * size)) for size in sizes]
