"""Tasks: what networks learn, and what they are judged by."""

from experiments.records.metrics import LOSS, Metric, share
from experiments.tasks.classification import Classification
from experiments.tasks.completion import Completion
from experiments.tasks.fit import check_fit
from experiments.tasks.language_modelling import LanguageModelling
from experiments.tasks.masked_language_modelling import MaskedLanguageModelling
from experiments.tasks.multilabel import Multilabel
from experiments.tasks.regression import Regression
from experiments.tasks.task import Task, call, counts, evaluate, mean_loss

__all__ = [
    "LOSS",
    "Classification",
    "Completion",
    "LanguageModelling",
    "MaskedLanguageModelling",
    "Metric",
    "Multilabel",
    "Regression",
    "Task",
    "call",
    "check_fit",
    "counts",
    "evaluate",
    "mean_loss",
    "share",
]
