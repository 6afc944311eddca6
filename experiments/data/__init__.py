"""Data sets as functions: each returns `Splits`, the examples for training, validation and test."""

from experiments.data.augmentation import crop_and_flip
from experiments.data.bookings import bookings
from experiments.data.datasets import DatasetExamples
from experiments.data.digit_labels import digit_labels
from experiments.data.embedded import digits, mnist5k
from experiments.data.examples import Batch, Data, Examples, Splits
from experiments.data.manual import manual, manual_sections
from experiments.data.parts import split
from experiments.data.tables import diabetes
from experiments.data.text import books, wikitext2
from experiments.data.topics import newsgroups, reuters8
from experiments.data.torchvision_sets import cifar10, cifar100, fashion_mnist, mnist

__all__ = [
    "Batch",
    "Data",
    "DatasetExamples",
    "Examples",
    "Splits",
    "bookings",
    "books",
    "cifar10",
    "cifar100",
    "crop_and_flip",
    "diabetes",
    "digit_labels",
    "digits",
    "fashion_mnist",
    "manual",
    "manual_sections",
    "mnist",
    "mnist5k",
    "newsgroups",
    "reuters8",
    "split",
    "wikitext2",
]
