"""A language for tests: sequences that count on from a random token, by one or by two."""

import torch

from experiments.data import Splits, split

VOCABULARY = 11


def sentences(count: int = 160, length: int = 8) -> Splits:
    noise = torch.Generator().manual_seed(0)
    begin, step = (torch.randint(most, (count, 1), generator=noise) for most in (VOCABULARY, 2))
    return split({"input_ids": (begin + (step + 1) * torch.arange(length)) % VOCABULARY}, validation=0.2, test=0.4)
