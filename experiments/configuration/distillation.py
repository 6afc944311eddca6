"""What a configuration says of a distillation, besides its loss, which is a target."""

from experiments.configuration.schema import Configuration
from experiments.configuration.targets import check_target
from pruning.errors import ConfigurationError

SHARED = ("alpha", "teacher", "level")
"""Options of all distillations, which no loss has."""


def check_distillation(config: Configuration) -> None:
    """Raise `ConfigurationError` for a distillation that cannot be, or has no effect."""
    given = config.distillation
    for name in SHARED:
        if name not in given:
            raise ConfigurationError(f"distillation.{name}: is missing: a distillation has {', '.join(SHARED)}")
    check_target("distillation", {name: value for name, value in given.items() if name not in SHARED})
    alpha, teacher, level = (given[name] for name in SHARED)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ConfigurationError(f"distillation.alpha={alpha}: give a share of the loss, in [0, 1]")
    if not isinstance(teacher, str) or not teacher:
        raise ConfigurationError(f"distillation.teacher={teacher}: give dense, or the folder of a run")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int) or level < 0):
        raise ConfigurationError(f"distillation.level={level}: give the number of a row, from 0, or null for the last")
    if level is not None and teacher == "dense":
        raise ConfigurationError("distillation.level: is of a run that distillation.teacher names: leave it null")
    trained = config.recovery.learning_rate == "replay" or config.recovery.epochs
    if alpha > 0 and not trained:
        raise ConfigurationError(
            "distillation: nothing is trained after the pruning: set recovery.epochs, or distillation=none"
        )
