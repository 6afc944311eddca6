"""Operators that treat every position alike: what they combine shares its labels.

Each is listed by when a removed position, which holds zeros, stays zero.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pruning.structure.coupling.labels import Axes, Axis, Labelling, Rule, argument, nonzero
from pruning.structure.recording.tape import Call, Ref

StaysZero = Callable[[Labelling, Call, list[bool]], bool]
"""Whether the result is zero where it is removed, given whether each tensor among the arguments is."""


def broadcast(state: Labelling, call: Call, operands: Sequence[Ref], stays_zero: Callable[[list[bool]], bool]) -> Axes:
    """The axes of the output, to which the operands' last dimensions are aligned."""
    shape = state.made(call)
    found: list[Axis | None] = []
    for back in range(len(shape), 0, -1):
        whole: list[Axis | None] = []
        zeros: list[bool] = []
        for ref in operands:
            axes = state.of(ref)
            axis = axes[-back] if back <= len(axes) else None
            if back <= len(axes) and state.shape(ref)[-back] == shape[-back]:
                whole.append(axis)
            zeros.append(axis is not None and axis.holds_zeros)
        found.append(state.tie(whole, stays_zero(zeros)) if shape[-back] > 1 else None)
    return tuple(found)


def _elementwise(stays_zero: StaysZero) -> Rule:
    def rule(state: Labelling, call: Call) -> Sequence[Axes]:
        operands = [ref for ref in call.args if isinstance(ref, Ref)]
        operands += [ref for ref in call.kwargs.values() if isinstance(ref, Ref)]
        axes = broadcast(state, call, operands, lambda zeros: stays_zero(state, call, zeros))
        return [axes] * len(call.outputs)

    return rule


def _scalar(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 1.0


def _keeps(_: Labelling, __: Call, zeros: list[bool]) -> bool:
    return all(zeros)


def _never(_: Labelling, __: Call, ___: list[bool]) -> bool:
    return False


def _sum(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    scalars = [part for part in call.args[:2] if not isinstance(part, Ref)]
    return all(zeros) and all(_scalar(part) == 0 for part in scalars)


def _product(_: Labelling, __: Call, zeros: list[bool]) -> bool:
    return any(zeros)


def _power(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    exponent = argument(call, 1, "exponent")
    return all(zeros) and isinstance(call.args[0], Ref) and isinstance(exponent, int | float) and exponent > 0


def _clamp(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    bounds = argument(call, 1, "min"), argument(call, 2, "max")
    if any(isinstance(bound, Ref) for bound in bounds):
        return False
    low, high = bounds
    return all(zeros) and (low is None or low <= 0) and (high is None or high >= 0)


def _clamp_min(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    bound = argument(call, 1, "min")
    return all(zeros) and not isinstance(bound, Ref) and bound <= 0


def _clamp_max(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    bound = argument(call, 1, "max")
    return all(zeros) and not isinstance(bound, Ref) and bound >= 0


def _hardtanh(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    low, high = argument(call, 1, "min_val", -1), argument(call, 2, "max_val", 1)
    return all(zeros) and low <= 0 <= high


def _threshold(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    return all(zeros) and (call.args[1] < 0 or call.args[2] == 0)


def _first(_: Labelling, call: Call, zeros: list[bool]) -> bool:
    return isinstance(call.args[0], Ref) and zeros[0]


def _first_or_product(_: Labelling, __: Call, zeros: list[bool]) -> bool:
    return zeros[0] and any(zeros[1:])


def _random(state: Labelling, call: Call) -> Sequence[Axes]:
    """Fewer draws are other draws. In training, where only what eval mode leaves unused is looked at, that may be."""
    axes = state.of(call.args[0])
    if state.number < state.tape.counted:
        state.fix_all(axes)
    return [nonzero(axes)] * len(call.outputs)


def _pole(rule: Rule, denominator: int) -> Rule:
    """Fix a denominator that holds zeros where it is removed: the masked network would have infinities there."""

    def fixing(state: Labelling, call: Call) -> Sequence[Axes]:
        below = call.args[denominator]
        if isinstance(below, Ref):
            for axis in state.of(below):
                if axis is not None and axis.holds_zeros:
                    state.fix(axis)
        return rule(state, call)

    return fixing


def _copy(state: Labelling, call: Call) -> Sequence[Axes]:
    """Copy `source`, broadcast, into `target`."""
    target, source = call.args[:2]
    axes = broadcast(state, call, [target, source], lambda zeros: zeros[1])
    return [axes]


def _like(state: Labelling, call: Call) -> Sequence[Axes]:
    """A constant in the shape of its argument: it has all labels it needs, and may lose any."""
    zeros = call.operator in ("zeros_like", "zero", "new_zeros_like")
    return [
        tuple(
            state.fresh(len(a), zeros, interchangeable=True) if a is not None else None for a in state.of(call.args[0])
        )
    ]


def _drop(state: Labelling, call: Call) -> Sequence[Axes]:
    """Dropout and its mask."""
    axes = state.of(call.args[0])
    if argument(call, 2, "train"):
        _random(state, call)
    return [axes, nonzero(axes)]


def _noisy(state: Labelling, call: Call) -> Sequence[Axes]:
    """Leaky ReLU, of a random slope in training."""
    if argument(call, 4, "training", False):
        _random(state, call)
    return [state.of(call.args[0])] * len(call.outputs)


def _to_a_power(state: Labelling, call: Call) -> Sequence[Axes]:
    """Zero to a negative power is infinite; a power that is a tensor may be negative."""
    exponent = argument(call, 1, "exponent")
    below = not isinstance(exponent, int | float) or exponent < 0
    rule = _elementwise(_power)
    return _pole(rule, 0)(state, call) if below else rule(state, call)


_SAME = """clone contiguous detach alias lift_fresh lift lift_fresh_copy to_copy to neg abs relu relu6 gelu silu mish
elu selu celu leaky_relu tanh hardswish softshrink hardshrink sin sinh asin atan asinh tan sqrt square sign erf expm1
log1p floor ceil round trunc frac maximum minimum fmax fmin where nan_to_num dropout feature_dropout positive
conj_physical real logical_or bitwise_or prelu prelu_kernel angle atan2"""
_NONZERO = """sigmoid exp exp2 cos cosh acos softplus log_sigmoid log_sigmoid_forward hardsigmoid eq ne lt le gt ge
logical_not logical_and bitwise_not bitwise_and isnan isinf isfinite masked_fill fill lerp erfc erfinv"""
_RANDOM = "bernoulli uniform normal random exponential cauchy geometric log_normal rand_like randn_like randint_like"

RULES: dict[str, Rule] = {
    **{name: _elementwise(_keeps) for name in _SAME.split()},
    **{name: _elementwise(_never) for name in _NONZERO.split()},
    **{name: _elementwise(_sum) for name in ("add", "sub", "rsub")},
    **{name: _elementwise(_product) for name in ("mul",)},
    **dict.fromkeys(_RANDOM.split(), _random),
    "rrelu_with_noise": _noisy,
    **{name: _pole(_elementwise(_first), 1) for name in ("div", "true_divide")},
    **{name: _pole(_elementwise(_never), 1) for name in ("remainder", "fmod", "floor_divide")},
    **{name: _pole(_elementwise(_never), 0) for name in ("reciprocal", "rsqrt", "log", "log2", "log10", "logit")},
    "addcmul": _elementwise(_first_or_product),
    "addcdiv": _pole(_elementwise(_first_or_product), 2),
    "pow": _to_a_power,
    "clamp": _elementwise(_clamp),
    "clamp_min": _elementwise(_clamp_min),
    "clamp_max": _elementwise(_clamp_max),
    "hardtanh": _elementwise(_hardtanh),
    "threshold": _elementwise(_threshold),
    "copy": _copy,
    "native_dropout": _drop,
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "zero"), _like),
}
