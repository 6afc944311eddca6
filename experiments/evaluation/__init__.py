"""What a network is worth beyond one number: its answers beside those of the dense one."""

from experiments.evaluation.churn import AnswerCollector, Answered, compare_rows, describe_answers, measure_churn

__all__ = ["AnswerCollector", "Answered", "compare_rows", "describe_answers", "measure_churn"]
