"""English that comes with every Python: the language reference, as `pydoc` shows it; 700 kB of text."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch
from torch import Tensor

from experiments.data.examples import Splits
from experiments.data.parts import split
from experiments.runtime.seeding import generator
from pruning.errors import DataError

VOCABULARY = 129
"""The 7-bit characters, and one token for masks: the data never hold it."""

MASK = 128
SECTIONS = 8


def manual(length: int = 64, validation: float = 0.1, seed: int = 0) -> Splits:
    """Characters of Python's language reference, for language models: the text differs between versions of Python.

    The column "input_ids" is int64 [n, length], the code of each 7-bit character, of pieces that do not overlap.

    Args:
        length: characters of a piece, from 2.
        validation: share of the pieces outside the test part, in (0, 1).
        seed: of the validation part alone.

    Raises:
        DataError: a length or share that cannot be met.
    """
    pieces = torch.cat([_pieces(text, length) for _, text in sorted(topics.items()) if len(text) >= length])
    return split({"input_ids": pieces}, validation, 0.1, seed)


def manual_sections(length: int = 64, validation: float = 0.1, seed: int = 0, shortest: int = 16) -> Splits:
    """Text classification: from which of the eight longest sections of the reference a piece of text is.

    Columns: "input_ids", int64 [n, length], padded with 0; "attention_mask", int64 of the same shape, 0 where padded;
    "targets", int64 [n], of 8 classes. Pieces are `shortest` to `length` characters long.

    Args:
        length, validation, seed: as of `manual`.
        shortest: characters of the shortest piece, from 1 to `length`.
    """
    if not 1 <= shortest <= length:
        raise DataError(f"manual_sections: shortest={shortest}: give 1 to {length}")
    longest = sorted(topics, key=lambda name: (-len(topics[name]), name))[:SECTIONS]
    parts = [_pieces(topics[name], length) for name in sorted(longest)]
    tokens = torch.cat(parts)
    targets = torch.cat([torch.full((len(part),), place) for place, part in enumerate(parts)])
    lengths = torch.randint(shortest, length + 1, (len(tokens), 1), generator=generator(0, "lengths"))
    mask = (torch.arange(length) < lengths).long()
    return split(
        {"input_ids": tokens * mask, "attention_mask": mask, "targets": targets}, validation, 0.2, seed, targets
    )


def _pieces(text: str, length: int) -> Tensor:
    if length < 2:
        raise DataError(f"manual: length={length}: give at least 2 characters")
    codes = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8).long()
    return codes[: len(codes) // length * length].view(-1, length)
