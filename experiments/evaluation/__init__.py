"""What a network is worth beyond one number: its answers beside those of the dense one."""

from experiments.evaluation.beside import Answered, Collected, beside, columns, described

__all__ = ["Answered", "Collected", "beside", "columns", "described"]
