"""Mean 0 and standard deviation 1 for each colour channel (for grey images: one mean, one deviation)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import DataError


def moments(name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, over all images and positions.

    Args:
        name: the data set, for the error.
        images: [n, channels, height, width], any numeric type.

    Returns:
        Two float32 tensors [channels, 1, 1]; the deviation is the population's (divided by the count).

    Raises:
        DataError: a channel is constant, so it has no scale.
    """
    # One channel at a time in float64: exact enough for any size without a float64 copy of all images
    channels = [torch.std_mean(images[:, channel].double(), correction=0) for channel in range(images.shape[1])]
    deviation = torch.stack([deviation for deviation, _ in channels])
    mean = torch.stack([mean for _, mean in channels])
    constant = torch.nonzero(deviation == 0).flatten().tolist()
    if constant:
        raise DataError(
            f"{name}: channels {constant} are constant in the training part and cannot be standardised: "
            "check the files, or leave these channels out"
        )
    return mean.float()[:, None, None], deviation.float()[:, None, None]


def standardise(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(images - mean) / deviation, float32 of the shape of `images`; the raw images stay as they are."""
    return (images.to(torch.float32) - mean).div_(deviation)
