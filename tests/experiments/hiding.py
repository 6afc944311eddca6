"""Packages that are not there: for what imports them, for what looks whether they could be, and for their versions."""

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


class Without:
    """An importer's finder that knows nothing of some packages."""

    def __init__(self, finder: Any, packages: Collection[str]):
        self.finder, self.packages = finder, {_module(name) for name in packages}

    def find_spec(self, name: str, *more: Any) -> Any:
        return None if name.partition(".")[0] in self.packages else self.finder.find_spec(name, *more)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return (one for one in found if _module(one.name) not in self.packages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


@contextmanager
def hidden(packages: Collection[str]) -> Iterator[None]:
    """Whatever of `packages` was imported before comes back at the end."""
    finders, names = sys.meta_path, {_module(name) for name in packages}
    gone = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}
    for name in gone:
        del sys.modules[name]
    sys.meta_path = [Without(finder, packages) for finder in finders]
    try:
        yield
    finally:
        sys.meta_path = finders
        sys.modules.update(gone)


def _module(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
