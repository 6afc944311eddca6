"""Networks as functions: each takes the shape of one example and the number of outputs, and returns a plain module."""

from experiments.models.conv import conv_2, conv_4, conv_6
from experiments.models.lenet import lenet_5, lenet_300_100
from experiments.models.library import timm_model, torchvision_model
from experiments.models.mlp import mlp
from experiments.models.pretrained import transformers_model
from experiments.models.resnet import resnet20, resnet32, resnet56
from experiments.models.text_classifier import text_classifier
from experiments.models.vgg import vgg16_bn

__all__ = [
    "conv_2",
    "conv_4",
    "conv_6",
    "lenet_5",
    "lenet_300_100",
    "mlp",
    "resnet20",
    "resnet32",
    "resnet56",
    "text_classifier",
    "timm_model",
    "torchvision_model",
    "transformers_model",
    "vgg16_bn",
]
