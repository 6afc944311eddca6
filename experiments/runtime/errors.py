"""What a user can mend is told in one line on standard error, with exit code 1, and never as a traceback."""

import sys


def report_error(message: str) -> int:
    """`message` as a line on standard error; exit code 1."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 1


def line(error: Exception) -> str:
    """An error in a line, with what mends it."""
    if isinstance(error, OSError):
        where = error.filename or "the disk"
        return f"{where}: {error.strerror or error}: make room or give access, or set folder= and store="
    return str(error)
