"""Steps after a removal that need no training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.curvature.approximations import Approximation, approximated, layer_hessian
from pruning.curvature.calls import Use, empty_use, follow_inputs
from pruning.curvature.linear_maps import column_sums, modules_with_columns
from pruning.errors import MaskError
from pruning.evidence import Evidence, accumulated
from pruning.inputs import Inputs, arguments
from pruning.masks import Masks
from pruning.modes import eval_mode
from pruning.processes import sum_, sum_of


@torch.no_grad()
def compensate(evidence: Evidence, masks: Mapping[str, Tensor], hessian: Approximation = layer_hessian) -> None:
    """Remove what `masks` removes and move what they keep, in the model, so that the loss rises least.

    In closed form and for all removed weights R at once: w_A ← w_A + H_AA⁻¹ H_AR w_R, with A what is kept; for one
    weight that is the update of Hassibi & Stork 1993, equation 5. May follow any scorer's masks. Nothing but prunable
    weights changes.

    Args:
        evidence: the model *before* the removal, with the data and loss that `hessian` needs.
        masks: name → bool tensor for every prunable tensor, True = kept.
        hessian: as in `pruning.scorers.obs`.

    Raises:
        MaskError: the masks do not fit.
        ScoreError: see the approximation.

    Warns:
        DampingWarning: H was singular, so its damping grew.
    """
    kept = checked(evidence, masks)
    with all_or_none(evidence.parameters) as put:
        for quadratic in approximated(hessian, evidence):
            for name, weight in quadratic.moved(evidence.parameters, kept).items():
                put(name, weight)
    kept.apply_(evidence.model)


@torch.no_grad()
def compensate_bias(evidence: Evidence, masks: Mapping[str, Tensor]) -> None:
    """Remove what `masks` removes, and add to each bias what the removed weights gave on average: b + Σ_R w·E[x].

    Exact where what is lost was constant, as the output of a dead channel is. In general the mean of every output
    channel over examples and positions stays as it was, for the inputs that the layer had before the removal. One
    forward pass of all batches. Layers without a bias have nowhere to put it and are left alone; where batch norm
    follows, `reestimate_batchnorm` does as much.

    Args:
        evidence: the model *before* the removal, with data and a loss, which runs the model.
        masks: name → bool tensor for every prunable tensor, True = kept.

    Raises:
        MaskError: the masks do not fit.
        ScoreError: no data, or a prunable weight that is not used by a Linear or a convolution.
    """
    kept = checked(evidence, masks)
    sums: dict[nn.Module, tuple[str, Tensor, float]] = {
        module: (name, column_sums(module, empty_use(module).inputs).double(), 0.0)
        for module, name in modules_with_columns(evidence).items()
    }

    def add(name: str, use: Use) -> None:
        _, total, count = sums[use.module]
        total = total + column_sums(use.module, accumulated(use.inputs).double())
        outputs = len(evidence.layouts[name].rows(evidence.parameters[name]))
        sums[use.module] = name, total, count + use.outputs.numel() // outputs

    follow_inputs(evidence, add)
    sum_(evidence.model, [found for _, found, _ in sums.values()])
    for module, (name, total, count) in sums.items():
        bias, weight = getattr(module, "bias", None), evidence.parameters[name]
        count = sum_of(evidence.model, count)
        if isinstance(bias, nn.Parameter) and count:
            groups, columns = total.shape
            rows = evidence.layouts[name].rows(weight.double().masked_fill(kept[name], 0))
            removed = rows.reshape(groups, -1, columns)
            bias.add_((removed @ (total / count)[:, :, None]).reshape(-1).to(bias.dtype))
    kept.apply_(evidence.model)


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Set the running statistics of batch norm to the plain mean over `batches` of the batches' own statistics.

    They were gathered by the network that was before the pruning. Batch norm alone is in train mode meanwhile, so that
    dropout does not take part; modes and momenta are as before afterwards. Without batches nothing changes.

    Args:
        batches: inputs of the model (a tensor, positional arguments or keyword arguments), on its device, all of about
            one size: each counts the same.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model):
        try:
            for number, inputs in enumerate(batches):
                for norm in norms if number == 0 else ():
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for the plain mean
                    norm.train()
                positional, named = arguments(inputs)
                model(*positional, **named)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@contextmanager
def all_or_none(parameters: Mapping[str, nn.Parameter]) -> Iterator[Callable[[str, Tensor], None]]:
    """Gives a function that writes the values of a parameter, by its name; an error undoes all that it has written."""
    before: dict[str, Tensor] = {}

    def put(name: str, values: Tensor) -> None:
        before.setdefault(name, parameters[name].detach().clone())
        parameters[name].copy_(values)

    try:
        yield put
    except BaseException:
        for name, values in before.items():
            parameters[name].copy_(values)
        raise


def checked(evidence: Evidence, masks: Mapping[str, Tensor]) -> Masks:
    """`masks`, if they are of exactly the prunable parameters. Raises `MaskError`."""
    kept = Masks(masks)
    for name in sorted(kept.keys() ^ evidence.parameters.keys()):
        raise MaskError(f"{name}: in only one of the masks and the prunable parameters: give masks for exactly those")
    kept.check(evidence.model)
    for name, mask in {} if evidence.masks is None else evidence.masks.items():
        if name in kept and bool((kept[name] & ~mask.to(kept[name].device)).any()):
            raise MaskError(f"{name}: masks keep what evidence.masks has removed: give prune within=evidence.masks")
    return kept
