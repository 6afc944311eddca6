"""A name that nobody knows is mostly a misspelt one: say which known names are near."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

FEW = 10  # so many names fit in one line


def unknown_name(subject: str, name: object, known: Iterable[str]) -> str:
    """One line for an error: `subject`, the unknown `name`, and the nearest `known` ones (all, if they are few)."""
    names = sorted(known)
    near = names if len(names) <= FEW else get_close_matches(str(name), names, n=3)
    mend = f"choose {', '.join(near)}" if near else f"choose one of its {len(names)} names; none is spelt like this"
    return f"{subject}: there is no {str(name)!r}: {mend}"
