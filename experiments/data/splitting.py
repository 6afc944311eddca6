"""Raw images to `Splits`: hold out a stratified validation part, then standardise by what is left to train on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from experiments.data.examples import Examples, Splits
from experiments.data.standardisation import moments, standardise
from pruning.errors import DataError


def check_validation(name: str, validation: float) -> None:
    """Refuse a validation share outside the open interval (0, 1), before anything is read or downloaded."""
    if not 0 < validation < 1:  # also refuses NaN
        raise DataError(
            f"{name}: validation={validation} leaves no part to select on or none to train on: "
            "give a share strictly between 0 and 1, such as 0.1"
        )


def hold_out(name: str, targets: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the positions 0 … n-1 at random so that each class keeps its frequency in both parts.

    Args:
        name: what is split, for the error.
        targets: int64 [n].
        share: part of the examples to hold out, in (0, 1); ceil(share · n) of them are.
        seed: of the random split, in [0, 2**32).

    Returns:
        Kept and held-out positions, int64, shuffled.

    Raises:
        DataError: some class would be missing in one of the parts, or the seed is out of range.
    """
    try:
        kept, held_out = _stratified(targets, seed, test_size=share)
    except ValueError as error:
        raise DataError(
            f"{name}: {len(targets)} examples cannot be split at share {share} with seed {seed} "
            f"({' '.join(str(error).split())}): choose another share or more examples"
        ) from error
    # scikit-learn rounds the counts of rare classes, down to none without a word
    vanished = _vanished(targets, kept, held_out)
    if vanished:
        raise DataError(
            f"{name}: share {share} of {len(targets)} examples leaves a part without classes {vanished}: "
            "choose another share or more examples"
        )
    return kept, held_out


def draw(name: str, targets: Tensor, training: int | None, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw positions for training and validation out of 0 … n-1, so that each class is as frequent in both as in all.

    Args:
        name: what is split, for the error.
        targets: int64 [n].
        training: how many to train on; None: all but those for validation.
        validation: how many to validate on, at least one of each class.
        seed: of the draw, in [0, 2**32).

    Returns:
        Positions of both, int64, shuffled.

    Raises:
        DataError: more than there are, or some class would be missing in one of the parts.
    """
    rest = len(targets) - validation
    kept = rest if training is None else training
    try:
        one, other = _stratified(targets, seed, train_size=kept, test_size=validation)
    except ValueError as error:
        raise DataError(
            f"{name}: {len(targets)} examples cannot be split into {kept} for training and {validation} for validation "
            f"({' '.join(str(error).split())}): ask for fewer, or for one of each class at least"
        ) from error
    if _vanished(targets, one, other):
        raise DataError(
            f"{name}: of {kept} examples for training and {validation} for validation, one part lacks a class: ask for "
            "more"
        )
    return one, other


def _stratified(targets: Tensor, seed: int, **sizes: float) -> tuple[Tensor, Tensor]:
    """Positions in two parts, each class as frequent in both as it can be; `sizes` are scikit-learn's."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  # slow to import

    places = np.arange(len(targets))
    one, other = train_test_split(places, random_state=seed, stratify=targets.numpy(), **sizes)
    return torch.from_numpy(one), torch.from_numpy(other)


def _vanished(targets: Tensor, one: Tensor, other: Tensor) -> list[int]:
    """Classes that are missing in one of two parts."""
    return sorted(set(targets.tolist()) - (set(targets[one].tolist()) & set(targets[other].tolist())))


def splits(
    name: str, training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], validation: float, seed: int
) -> Splits:
    """Splits of raw images; neither validation nor test examples touch the mean and deviation used for all three.

    Args:
        name: the data set, for the errors.
        training, test: pairs of images [n, channels, height, width], any numeric type, and targets int64 [n].
        validation: share of the training pair that becomes the validation part, in (0, 1).
        seed: of the validation part, in [0, 2**32).

    Raises:
        DataError: as `check_validation`, `hold_out` and `moments`.
    """
    check_validation(name, validation)
    images, targets = training
    kept, held_out = hold_out(name, targets, validation, seed)
    mean, deviation = moments(name, images[kept])
    return Splits(
        train=Examples(inputs=standardise(images[kept], mean, deviation), targets=targets[kept]),
        validation=Examples(inputs=standardise(images[held_out], mean, deviation), targets=targets[held_out]),
        test=Examples(inputs=standardise(test[0], mean, deviation), targets=test[1]),
    )
