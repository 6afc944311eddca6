"""Distillation: what a student learns from a teacher, beside its task."""

from experiments.distillation.attention import Attention
from experiments.distillation.combined import Combined
from experiments.distillation.hidden import Hidden
from experiments.distillation.logits import Logits
from experiments.distillation.loss import DistillationLoss
from experiments.distillation.objective import begin
from experiments.distillation.passes import Pass, forward

__all__ = ["Attention", "Combined", "DistillationLoss", "Hidden", "Logits", "Pass", "begin", "forward"]
