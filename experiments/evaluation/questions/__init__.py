"""Questions that come along: words, numbers and stories. One function each, in a file of its kind."""

from experiments.evaluation.questions.arithmetic import addition, word_problems
from experiments.evaluation.questions.question import Question, Questions
from experiments.evaluation.questions.words import capitals, opposites, past_tense

__all__ = ["Question", "Questions", "addition", "capitals", "opposites", "past_tense", "word_problems"]
