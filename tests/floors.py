"""The lowest versions that setup.cfg allows, as constraints for pip: python tests/floors.py > constraints.

Runs before anything is installed, so it needs the standard library alone.
"""

import re
from configparser import ConfigParser
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def requirements() -> list[str]:
    """All that setup.cfg requires, extras too, as "name>=floor"."""
    setup = ConfigParser()
    setup.read(SETUP)
    blocks = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def floors() -> dict[str, str]:
    """Name -> lowest version. Raises `ValueError` for a requirement in another form, whose floor nobody would try."""
    found = {}
    for line in requirements():
        parts = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", line)
        if parts is None:
            raise ValueError(f"setup.cfg: {line}: give it as name>=version")
        found[parts[1]] = parts[2]
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in floors().items()))
