"""Any classifier of torchvision or timm, by its name there, with random weights and fitted to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from experiments.models.names import unknown_name
from experiments.models.shapes import image_shape
from experiments.runtime.errors import kind_and_message
from experiments.runtime.extras import missing
from pruning.errors import ModelError


def torchvision_model(name: str, shape: Sequence[int], outputs: int, **kwargs: Any) -> nn.Module:
    """A classifier of torchvision with its own random initialisation.

    Torchvision's models read three channels. For another number the first convolution is replaced, with weights drawn
    from a normal distribution that has the standard deviation of the replaced ones.

    Args:
        name: as in `torchvision.models.list_models()`, such as resnet18.
        shape: [channels, height, width].
        outputs: numbers for each example: a logit a class, or those of a regression.
        kwargs: further arguments of that model, such as dropout=0.1. GoogLeNet and Inception have no auxiliary
            classifiers unless aux_logits=True.

    Returns:
        A module from [batch, *shape] to [batch, outputs], in training mode.

    Raises:
        ModelError: torchvision is missing, the name or an argument is unknown, or the model cannot read such images.
    """
    channels, _, _ = image_shape(name, shape, outputs)
    try:
        import torchvision.models  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise _missing("torchvision", name) from error
    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(unknown_name("torchvision", name, known))
    if name in ("googlenet", "inception_v3"):
        kwargs.setdefault("aux_logits", False)  # with them, the output in training mode is not a tensor
        kwargs.setdefault("init_weights", True)  # the present default, which warns when it is left out
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=outputs, **kwargs)
    except (TypeError, ValueError) as error:
        raise _refused("torchvision", name, error) from error
    _set_channels(model, channels)
    return _checked(model, name, shape, outputs)


def timm_model(name: str, shape: Sequence[int], outputs: int, **kwargs: Any) -> nn.Module:
    """A classifier of timm with its own random initialisation.

    Some of timm's models start the last batch norm of each block at 0, and with it every gradient and every score from
    gradients inside the block; zero_init_last=False, where a model has it, starts them at 1.

    Args:
        name: as in `timm.list_models()`, such as resnet18 or vit_tiny_patch16_224.
        shape: [channels, height, width].
        outputs: numbers for each example: a logit a class, or those of a regression.
        kwargs: further arguments of that model, such as img_size=32 for a vision transformer.

    Returns:
        A module from [batch, *shape] to [batch, outputs], in training mode.

    Raises:
        ModelError: timm is missing, the name or an argument is unknown, or the model cannot read such images.
    """
    channels, _, _ = image_shape(name, shape, outputs)
    try:
        import timm  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise _missing("timm", name) from error
    if not timm.is_model(name):
        raise ModelError(unknown_name("timm", name, timm.list_models()))
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=outputs, in_chans=channels, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _refused("timm", name, error) from error
    return _checked(model, name, shape, outputs)


def _missing(package: str, name: str) -> ModelError:
    return ModelError(f"{name}: {missing(package)}")


def _refused(package: str, name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name}: {package} cannot build it so ({kind_and_message(error)}): check the further arguments of model"
    )


def _set_channels(model: nn.Module, channels: int) -> None:
    path, old = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.normal_(std=old.weight.std().item())
        if old.bias is not None:
            new.bias = old.bias
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _checked(model: nn.Module, name: str, shape: Sequence[int], outputs: int) -> nn.Module:
    """`model`, after it has read one example, in evaluation mode: statistics and random state stay as they are."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"{name}: cannot read images of shape {list(shape)} ({kind_and_message(error)}): "
            "use larger images, another model, or its own size argument (+model.img_size=32)"
        ) from error
    if not isinstance(logits, torch.Tensor) or list(logits.shape) != [1, outputs]:
        given = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{name}: gives {given} for one image, not [1, {outputs}]: choose a model that classifies")
    return model.train()
