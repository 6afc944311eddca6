"""Data sets as functions: each returns `Splits`, standardised tensors for training, validation and test."""

from experiments.data.augmentation import crop_and_flip
from experiments.data.embedded import digits, mnist5k
from experiments.data.examples import Examples, Splits
from experiments.data.torchvision_sets import cifar10, cifar100, fashion_mnist, mnist

__all__ = [
    "Examples",
    "Splits",
    "cifar10",
    "cifar100",
    "crop_and_flip",
    "digits",
    "fashion_mnist",
    "mnist",
    "mnist5k",
]
