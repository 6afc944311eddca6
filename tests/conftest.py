"""Hypothesis without deadlines (machines differ) and with few, repeatable examples."""

from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("quick")
