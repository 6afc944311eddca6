"""A small sweep as users make it, shared by the tests that look at what comes out."""

from pathlib import Path

import pytest

from experiments import run as app
from tests.experiments.running import setting_of


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Path:
    """Two scorers, two seeds, three densities on digits: runs below `runs`, artefacts in `store`."""
    folder = tmp_path_factory.mktemp("swept")
    for scorer in ("magnitude", "random"):
        for seed in (0, 1):
            setting = setting_of(folder, f"scorer={scorer}", f"seed={seed}", "density=[0.5,0.1,0.02]")
            app.run(setting, folder / "runs" / f"{scorer}-{seed}", f"{scorer}-{seed}")
    return folder
