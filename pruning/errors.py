"""What a user can cause: every error names the thing, the reason and the fix, in one line."""


class PruningError(Exception):
    """The base of all errors that a caller can fix; nothing else of this library is meant to be caught."""


class ParameterError(PruningError):
    """No prunable parameter, or a choice of parameters that does not fit the model."""


class MaskError(PruningError):
    """Masks that do not fit a model, other masks, or scores."""


class ScoreError(PruningError):
    """Scores that cannot be ranked: not finite, wrong shape, missing."""


class DampingWarning(UserWarning):
    """A singular Hessian was made invertible by adding more to its diagonal than was asked for."""


class ToleranceWarning(UserWarning):
    """An estimate has not become as sure as was asked for."""


class CoverageWarning(UserWarning):
    """A good part of a model's weights lies in layers that are not prunable by default."""


class AllocationError(PruningError):
    """A density that cannot be shared out as asked."""


class GranularityError(PruningError):
    """A unit that does not exist in a tensor of this shape."""


class StructureError(PruningError):
    """A network that cannot be traced, or units that cannot be removed without changing it."""


class SequenceError(PruningError):
    """Blocks of a network that do not run one after the other."""


class ScheduleError(PruningError):
    """A schedule that cannot be met."""


class RewindError(PruningError):
    """A rewind point that lacks what is asked of it, or is of another training."""


class ExecutionError(PruningError):
    """A layer or an optimizer that cannot work on kept weights alone."""


class AdaptationError(PruningError):
    """An adaptation that does not fit a model, or an optimizer that would not train it as it is meant."""


class ArtefactError(PruningError):
    """A file that is missing, cut, damaged, foreign or of another format."""


class ConfigurationError(PruningError):
    """A configuration that cannot be run."""


class DataError(PruningError):
    """A data set that is missing or cannot be split as asked."""


class ModelError(PruningError):
    """A model that is unknown or does not fit the data."""


class RecordsError(PruningError):
    """Rows that are missing, damaged or must not be compared."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows; its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
