"""Errors for unknown names, with the nearest known ones: most are misspelt."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

FEW = 10  # names that fit in one line


def unknown_name(subject: str, name: object, known: Iterable[str]) -> str:
    """One line for an error: `subject`, the unknown `name`, and the nearest `known` ones (all, if they are few)."""
    names = sorted(known)
    near = names if len(names) <= FEW else get_close_matches(str(name), names, n=3)
    fix = f"choose {', '.join(near)}" if near else f"choose one of its {len(names)} names; none is spelt like this"
    return f"{subject}: there is no {str(name)!r}: {fix}"
