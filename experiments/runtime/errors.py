"""Errors that a user can fix: one line on standard error and exit code 1, never a traceback."""

import sys


def report_error(message: str) -> int:
    """Print `message` as one line on standard error and return exit code 1."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def kind_and_message(error: Exception) -> str:
    """The type and message of an error in one line: "ValueError: not a number"."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def line(error: Exception) -> str:
    """The message of an error in one line, with how to fix it."""
    if isinstance(error, OSError):
        where = error.filename or "the disk"
        return f"{where}: {error.strerror or error}: make room or give access, or set folder= and store="
    return str(error)
