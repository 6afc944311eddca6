"""Hypothesis without deadlines (machines differ) and with few, repeatable examples; and temporary files that go."""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """What libraries leave behind in the folder for temporary files goes with the session; `tmp_path` stays."""
    if hasattr(config, "workerinput"):  # the environment of the process that started this one says where
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    folder.chmod(0o755)  # some tests are other users
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


SLOW = ("test_notebooks.py", "test_launchers.py", "test_torchrun.py", "test_training_contexts.py", "test_readme.py")
"""Files whose tests take long: they come first, so that no worker has one left when the others are done."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)
