"""Dense, prune, recover: each idempotent, its artefact addressed by what determines it.

Every identity holds the key of what it starts from, so a chain of keys is the history of a network; scorers that share
a seed share the dense network, and a repeated command finds everything made. It holds what the stage reads of the
configuration, and the code that the stage runs; a file of this package imports what its stages run, and no more.
"""

from experiments.running.stages.adaptation import adapt
from experiments.running.stages.adaptation_check import check_adaptation
from experiments.running.stages.blocks import check_block_scorer, check_blocks, prune_blocks
from experiments.running.stages.masks import prune, shuffle
from experiments.running.stages.recovery import check_dynamic, reaches_density_while_training, recover
from experiments.running.stages.scoring import Scoring, check_scorer, evidence_of, score
from experiments.running.stages.support import check_support
from experiments.running.stages.teaching import Teaching, check_teaching, teaching
from experiments.running.stages.trained import dense, initial, is_distilled, rewind_point, train_whole

__all__ = [
    "Scoring",
    "Teaching",
    "adapt",
    "check_adaptation",
    "check_block_scorer",
    "check_blocks",
    "check_dynamic",
    "check_scorer",
    "check_support",
    "check_teaching",
    "dense",
    "evidence_of",
    "initial",
    "is_distilled",
    "prune",
    "prune_blocks",
    "reaches_density_while_training",
    "recover",
    "rewind_point",
    "score",
    "shuffle",
    "teaching",
    "train_whole",
]
