"""The schema of configurations. A field that is not here is an error on the command line, also with a plus sign."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The folder of all choices, one YAML each: in the package, in a checkout and where the package is installed."""


@dataclass
class Training:
    """Training of dense networks, shared in part with recovery; see `experiments.training.loop.Recipe`."""

    epochs: int = 12
    batch_size: int = 60
    accumulate: int = 1
    clip: float | None = None
    best_on_validation: bool = False
    precision: str = "no"


@dataclass
class Scoring:
    """The data that scorers see: `examples` of the training part (None: all), and the model's mode."""

    examples: int | None = None
    batch_size: int = 100
    mode: str = "eval"


@dataclass
class Recovery:
    """Recovery after a pruning. Renda et al. 2020 name three: see `experiments/conf/recovery/`.

    `weights`: `keep` them, or `rewind` them, with the optimizer's state, to the moment `to` of the dense training.
    `learning_rate`: train `epochs` more at the `last` rate times `factor`; or `replay` the training from `to` to its
    end, whatever `epochs` says.
    `to`: "500it" (optimizer steps) or "2ep" (epochs). `rounds`: after `every` round, or only after the `last` of a
    density. `batchnorm_batches`: batches from which the statistics of batch norm are
    estimated again, right after the pruning.
    """

    weights: str = "keep"
    learning_rate: str = "last"
    epochs: int | None = 6
    factor: float = 1.0
    to: str = "0ep"
    rounds: str = "every"
    batchnorm_batches: int = 0


@dataclass
class Checkpoint:
    """Intervals between checkpoints, from which a training resumes: `seconds`, `steps`, or both."""

    seconds: float | None = 60.0
    steps: int | None = None


@dataclass
class Configuration:
    """Everything that a run depends on.

    `latency`: examples per forward pass whose time is measured for every row; null: not measured.
    `objective`: columns of a run's last row that a searching sweeper optimises; see `experiments/conf/experiment/`.
    """

    data: dict[str, Any] = MISSING
    task: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    learning_rate: dict[str, Any] = MISSING
    scorer: dict[str, Any] = MISSING
    granularity: dict[str, Any] = MISSING
    allocation: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    tracker: dict[str, Any] = MISSING
    training: Training = field(default_factory=Training)
    scoring: Scoring = field(default_factory=Scoring)
    recovery: Recovery = field(default_factory=Recovery)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    compensate: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = MISSING
    controls: list[str] = field(default_factory=list)
    latency: int | None = None
    objective: list[str] = field(default_factory=list)
    include: Any = None
    exclude: Any = None
    density: Any = 0.1
    when: str = "trained"
    seed: int = 0
    name: str = "default"
    folder: str = "runs/${name}"
    store: str = "runs/store"
    threads: str = "auto"
    device: str = "auto"
    experiment: str | None = None


CONTROLS = ("reinit", "shuffle", "random", "small_dense")
"""Networks to compare a ticket with: see `experiments.running.controls`."""
