"""Weights & Biases."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runtime.extras import require
from experiments.tracking.base import numbers

if TYPE_CHECKING:  # drawing takes a second to import
    from matplotlib.figure import Figure
    from PIL.Image import Image


class Wandb:
    """Weights & Biases: a wandb run for every run, its levels as steps, the sweep's name as group.

    `mode` is "online", "offline" or "auto": online where somebody is logged in.
    """

    def __init__(self, project: str = "sparse-subnetworks", mode: str = "auto", folder: str | None = None):
        require("wandb")
        self._project, self._mode, self._folder = project, mode, folder
        self._run: Any = None

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Open the wandb run; a repeated run continues its own."""
        import wandb  # noqa: PLC0415  # slow to import, and only needed here

        mode: Any = self._mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        if self._folder is not None:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            mode=mode,
            dir=self._folder,
            id=run,
            name=run,
            group=str(config.get("name")),
            tags=tags(config),
            config=dict(config),
            resume="allow",
            reinit="finish_previous",
        )

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the row's numbers at its level; those of a control under its name."""
        self._run.log(numbers(row), step=row["level"])

    def results(self, figures: Mapping[str, "Figure"], masks: Mapping[str, Path]) -> None:
        """Images of the figures; one artifact with all masks."""
        import wandb  # noqa: PLC0415  # slow to import, and only needed here

        if figures:
            self._run.log({name: wandb.Image(_drawn(figure)) for name, figure in figures.items()})
        if masks:
            artifact = wandb.Artifact(f"masks-{self._run.id}", type="masks")
            for name, path in masks.items():
                artifact.add_file(str(path), name=f"{name}.safetensors")
            self._run.log_artifact(artifact)

    def finish(self, done: bool) -> None:
        """Close it, as failed if it is not `done`."""
        self._run.finish(exit_code=0 if done else 1)


def tags(config: Mapping[str, Any]) -> list[str]:
    """Tags by which a run is found: scorer, model, granularity, data and when."""
    found = []
    for key in ("scorer", "model", "granularity"):
        target = str((config.get(key) or {}).get("_target_", ""))
        found.append(target.rpartition(".")[2])
    found += [str((config.get("data") or {}).get("name", "")), str(config.get("when", ""))]
    return [tag[:64] for tag in dict.fromkeys(found) if tag]


def _drawn(figure: "Figure") -> "Image":
    from PIL.Image import open as open_image  # noqa: PLC0415  # slow to import, and only needed for figures

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return open_image(drawn)
