"""Random crops and mirror images of whole batches, replayable: every draw comes from the generator that is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.errors import DataError


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Pad with zeros, crop back at a random place, mirror left to right with probability 1/2; each image on its own.

    The augmentation of He et al. 2016, section 4.2. Standardised images are padded with their mean, which is zero.

    Args:
        images: [n, channels, height, width]; not changed.
        generator: source of all draws, in this order: rows, columns, flips. It may be on another device than the
            images, so that one seed gives the same augmentation on every device.
        padding: zeros on each of the four sides, at least 0; the crop's corner is uniform on 0 … 2 · padding.

    Returns:
        A tensor of the shape, type and device of `images`.

    Raises:
        DataError: `images` is not four-dimensional, or `padding` is negative.
    """
    if images.dim() != 4:
        raise DataError(
            f"crop_and_flip: inputs of shape {list(images.shape)} are no images: "
            "give [n, channels, height, width], or set data.augment=null"
        )
    if padding < 0:
        raise DataError(f"crop_and_flip: padding={padding} is negative: give 0 or more, such as 4")
    n, channels, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator, device=generator.device).to(images.device)
    flip = (torch.rand(n, generator=generator, device=generator.device) < 0.5).to(images.device)

    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    # One gather over flattened positions: six times faster than indexing by four index tensors
    positions = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    positions = positions.view(n, 1, height * width).expand(n, channels, height * width)
    padded = F.pad(images, (padding, padding, padding, padding))
    return padded.flatten(2).gather(2, positions).view(n, channels, height, width)
