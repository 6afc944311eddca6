"""The schema of configurations. A field that is not here is an error on the command line, also with a plus sign."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The folder of all choices, one YAML each: in the package, in a checkout and where the package is installed."""

CONTROLS = ("reinit", "shuffle", "random", "small_dense")
"""Networks to compare a ticket with: see `experiments.running.controls`."""

Group = dict[str, Any]
"""A choice among a group's YAML files: a `_target_` and its arguments, which its own signature checks."""


def one_of(*choices: str, default: str) -> Any:
    """Declare a field with these choices."""
    return field(default=default, metadata={"choices": choices})


def at_least(least: int, default: float | None) -> Any:
    """Declare a number that is not smaller than `least`."""
    return field(default=default, metadata={"least": least})


# None of these is frozen: OmegaConf would refuse overrides of one that is.


@dataclass
class Training:
    """Training of dense networks, shared in part with recovery; see `experiments.training.recipe.Recipe`.

    `trainable`: globs of the parameters that are trained, as of a linear probe; null: all. What an `adaptation` trains
    is its own.
    """

    epochs: int = at_least(0, 12)
    batch_size: int = at_least(1, 60)
    trainable: list[str] | None = None
    accumulate: int = at_least(1, 1)
    clip: float | None = None
    best_on_validation: bool = False
    precision: str = one_of("no", "bf16", "fp16", default="no")


@dataclass
class Scoring:
    """The data that scorers see: `examples` of the training part (None: all), and the model's mode."""

    examples: int | None = at_least(1, None)
    batch_size: int = at_least(1, 100)
    mode: str = one_of("train", "eval", default="eval")


@dataclass
class Recovery:
    """Recovery after a pruning. Renda et al. 2020 name three: see `experiments/conf/recovery/`.

    `weights`: `keep` them, or `rewind` them, with the optimizer's state, to the moment `to` of the dense training.
    `learning_rate`: train `epochs` more at the `last` rate times `factor`, or under the whole schedule again
    (`restart`); or `replay` the training from `to` to its end, whatever `epochs` says.
    `to`: "500it" (optimizer steps) or "2ep" (epochs). `rounds`: after `every` round, or only after the `last` of a
    density. `batchnorm_batches`: batches from which the statistics of batch norm are estimated again, right after the
    pruning.
    """

    weights: str = one_of("keep", "rewind", default="keep")
    learning_rate: str = one_of("last", "restart", "replay", default="last")
    epochs: int | None = at_least(0, 6)
    factor: float = 1.0
    to: str = "0ep"
    rounds: str = one_of("every", "last", default="every")
    batchnorm_batches: int = at_least(0, 0)


@dataclass
class Checkpoint:
    """Intervals between checkpoints, from which a training resumes: `seconds`, `steps`, or both."""

    seconds: float | None = at_least(0, 60.0)
    steps: int | None = at_least(1, None)


@dataclass
class Configuration:
    """Everything that a run depends on.

    `calibration`: whether scorers and compensations see the `whole` network as it was before the pruning, or block
    after block (`sequential`), each with what the pruned blocks before it give; see `pruning.sequential`.
    `method`: a paper's choice of scorer, allocation and compensation, which it stands for in labels; see
    `experiments/conf/method/`.
    `distillation`: a loss beside the task's in trainings under masks: `alpha` of it, 1 - `alpha` of the task's. Its
    `teacher` is the run's `dense` network, or that of the run in this folder at this `level` (null: its last).
    `latency`: examples per forward pass whose time is measured for every row; null: not measured.
    `objective`: columns of a run's last row that a searching sweeper optimises; see `experiments/conf/experiment/`.
    """

    data: Group = MISSING
    task: Group = MISSING
    model: Group = MISSING
    optimizer: Group = MISSING
    learning_rate: Group = MISSING
    scorer: Group = MISSING
    granularity: Group = MISSING
    allocation: Group = MISSING
    schedule: Group = MISSING
    tracker: Group = MISSING
    training: Training = field(default_factory=Training)
    scoring: Scoring = field(default_factory=Scoring)
    recovery: Recovery = field(default_factory=Recovery)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    calibration: str = one_of("whole", "sequential", default="whole")
    compensate: Group = field(default_factory=dict)
    dynamic: Group = field(default_factory=dict)
    adaptation: Group = field(default_factory=dict)
    distillation: Group = field(default_factory=dict)
    execution: Group = MISSING
    controls: list[str] = field(default_factory=list)
    latency: int | None = at_least(1, None)
    objective: list[str] = field(default_factory=list)
    include: Any = None
    exclude: Any = None
    density: Any = 0.1
    when: str = one_of("init", "trained", "pretrained", default="trained")
    seed: int = at_least(0, 0)
    name: str = "default"
    folder: str = "runs/${name}"
    store: str = "runs/store"
    threads: str = "auto"
    device: str = one_of("auto", "cpu", default="auto")
    experiment: str | None = None
    method: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data: what rows hold, and YAML."""
        return asdict(self)
