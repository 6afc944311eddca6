"""Models: sizes derived by hand, forward passes written out, gradients everywhere, initial weights as documented."""

import sys
from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments import models
from experiments.configuration.targets import completed
from experiments.models.resnet import BasicBlock, PaddedIdentity
from pruning.errors import ModelError

CONF = Path(__file__).parents[2] / "experiments" / "conf" / "model"
GREY, COLOUR = [1, 28, 28], [3, 32, 32]
INITIALISATIONS = ["xavier_normal", "kaiming_normal", "kaiming_uniform", "torch"]
OURS = [
    ("mlp", GREY),
    ("lenet_300_100", GREY),
    ("lenet_5", GREY),
    ("conv_2", COLOUR),
    ("conv_4", COLOUR),
    ("conv_6", COLOUR),
    ("resnet20", COLOUR),
    ("resnet32", COLOUR),
    ("resnet56", COLOUR),
    ("vgg16_bn", COLOUR),
]

Builder = Callable[..., nn.Module]


def build(name: str) -> Builder:
    builder: Builder = getattr(models, name)
    return builder


def weights(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    """Elements of the weights, without biases, of all modules of a kind."""
    return sum(module.get_parameter("weight").numel() for module in model.modules() if isinstance(module, kind))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- sizes


def resnet_parameters(n: int, shortcut: str) -> int:
    """He et al. 2016, section 4.2, added up: 6n + 1 convolutions of 3x3, a batch norm after each, one linear layer."""
    first = 3 * 16 * 9 + 2 * 16
    stage1 = 2 * n * (16 * 16 * 9 + 2 * 16)
    stage2 = 16 * 32 * 9 + (2 * n - 1) * 32 * 32 * 9 + 2 * n * 2 * 32
    stage3 = 32 * 64 * 9 + (2 * n - 1) * 64 * 64 * 9 + 2 * n * 2 * 64
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64) if shortcut == "B" else 0
    return first + stage1 + stage2 + stage3 + projections + 64 * 10 + 10


VGG_WIDTHS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
CONV, LINEAR = nn.Conv2d, nn.Linear


@pytest.mark.parametrize(
    ("name", "inputs", "convolutional", "linear", "others"),
    [
        ("lenet_300_100", GREY, 0, 784 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10),
        ("mlp", GREY, 0, 266_200, 410),
        # 28 - 4 = 24, halved 12, - 4 = 8, halved 4
        ("lenet_5", GREY, 20 * 25 + 50 * 20 * 25, 50 * 16 * 500 + 500 * 10, 20 + 50 + 500 + 10),
        ("conv_2", COLOUR, 38_592, 64 * 16 * 16 * 256 + 256 * 256 + 256 * 10, 650),
        ("conv_4", COLOUR, 38_592 + (64 + 128) * 128 * 9, 128 * 8 * 8 * 256 + 256 * 256 + 256 * 10, 906),
        ("conv_6", COLOUR, 259_776 + (128 + 256) * 256 * 9, 256 * 4 * 4 * 256 + 256 * 256 + 256 * 10, 1_418),
        (
            "vgg16_bn",
            COLOUR,
            9 * sum(a * b for a, b in pairwise(VGG_WIDTHS)),
            512 * 10,
            2 * sum(VGG_WIDTHS[1:]) + 10,
        ),
    ],
)
def test_sizes_by_layer_arithmetic(name: str, inputs: list[int], convolutional: int, linear: int, others: int) -> None:
    model = build(name)(inputs, 10)
    assert (weights(model, CONV), weights(model, LINEAR)) == (convolutional, linear)
    assert parameters(model) == convolutional + linear + others


@pytest.mark.parametrize(
    ("name", "inputs", "weight_count", "parameter_count"),
    [
        ("lenet_300_100", GREY, 266_200, 266_610),
        ("lenet_5", GREY, 430_500, 431_080),
        ("conv_2", COLOUR, 4_300_992, 4_301_642),
        ("conv_4", COLOUR, 2_425_024, 2_425_930),
        ("conv_6", COLOUR, 2_261_184, 2_262_602),
        ("vgg16_bn", COLOUR, 14_710_464 + 5_120, 14_724_042),
    ],
)
def test_sizes_as_published(name: str, inputs: list[int], weight_count: int, parameter_count: int) -> None:
    model = build(name)(inputs, 10)
    assert weights(model, (CONV, LINEAR)) == weight_count
    assert parameters(model) == parameter_count


@pytest.mark.parametrize(
    ("name", "n", "count"), [("resnet20", 3, 269_722), ("resnet32", 5, 464_154), ("resnet56", 9, 853_018)]
)
def test_residual_networks_have_the_papers_size_and_depth(name: str, n: int, count: int) -> None:
    plain, projected = build(name)(COLOUR, 10), build(name)(COLOUR, 10, shortcut="B")
    assert parameters(plain) == resnet_parameters(n, "A") == count
    assert parameters(projected) == resnet_parameters(n, "B") == count + 2_752
    for model, extra in ((plain, 0), (projected, 2)):
        assert sum(isinstance(module, CONV) for module in model.modules()) == 6 * n + 1 + extra
    assert sum(isinstance(module, LINEAR) for module in plain.modules()) == 1


# --- what they compute


@pytest.mark.parametrize(("name", "inputs"), OURS)
def test_logits_and_gradients_everywhere(name: str, inputs: list[int]) -> None:
    torch.manual_seed(0)
    model = build(name)(inputs, 7)
    logits = model(torch.randn(6, *inputs))
    assert logits.shape == (6, 7)
    F.cross_entropy(logits, torch.arange(6)).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("lenet_5", 16), ("conv_2", 2), ("conv_4", 4), ("conv_6", 8), ("vgg16_bn", 16), ("resnet20", 1)],
)
def test_the_smallest_image_passes_and_one_pixel_less_is_refused(name: str, smallest: int) -> None:
    model = build(name)([2, smallest, smallest + 1], 5).eval()
    assert model(torch.randn(3, 2, smallest, smallest + 1)).shape == (3, 5)
    if smallest > 1:
        with pytest.raises(ModelError, match=f"{name}: images of {smallest + 1}x{smallest - 1} pixels") as error:
            build(name)([2, smallest + 1, smallest - 1], 5)
        assert "use larger images (data=mnist5k)" in one_line(error)


def test_lenet_300_100_written_out() -> None:
    model = models.lenet_300_100(GREY, 10)
    p, images = model.state_dict(), torch.randn(4, *GREY)
    assert list(p) == [f"fc{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
    hidden = torch.relu(images.reshape(4, 784) @ p["fc1.weight"].T + p["fc1.bias"])
    hidden = torch.relu(hidden @ p["fc2.weight"].T + p["fc2.bias"])
    torch.testing.assert_close(model(images), hidden @ p["fc3.weight"].T + p["fc3.bias"])


def test_lenet_5_written_out_has_no_activation_after_its_convolutions() -> None:
    model = models.lenet_5(GREY, 10)
    p, images = model.state_dict(), torch.randn(4, *GREY)
    features = F.max_pool2d(F.conv2d(images, p["conv1.weight"], p["conv1.bias"]), 2)
    features = F.max_pool2d(F.conv2d(features, p["conv2.weight"], p["conv2.bias"]), 2)
    hidden = torch.relu(features.reshape(4, 800) @ p["fc1.weight"].T + p["fc1.bias"])
    torch.testing.assert_close(model(images), hidden @ p["fc2.weight"].T + p["fc2.bias"])


@pytest.mark.parametrize(("name", "pairs"), [("conv_2", 1), ("conv_4", 2), ("conv_6", 3)])
def test_conv_networks_written_out(name: str, pairs: int) -> None:
    model = build(name)(COLOUR, 10)
    p, features = model.state_dict(), torch.randn(2, *COLOUR)
    images = features
    for i in range(1, 2 * pairs + 1):
        features = torch.relu(F.conv2d(features, p[f"conv{i}.weight"], p[f"conv{i}.bias"], padding=1))
        features = F.max_pool2d(features, 2) if i % 2 == 0 else features
    hidden = features.reshape(2, -1)
    for i in (1, 2):
        hidden = torch.relu(hidden @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"])
    torch.testing.assert_close(model(images), hidden @ p["fc3.weight"].T + p["fc3.bias"])


def test_vgg16_bn_written_out() -> None:
    torch.manual_seed(0)
    model = models.vgg16_bn(COLOUR, 10).eval()
    p, features = model.state_dict(), torch.randn(2, *COLOUR)
    images = features
    for i in range(1, 14):
        features = F.conv2d(features, p[f"conv{i}.weight"], padding=1)
        features = torch.relu(features / sqrt(1 + 1e-5))  # batch norm with its initial statistics
        features = F.max_pool2d(features, 2) if i in (2, 4, 7, 10) else features
    assert features.shape == (2, 512, 2, 2)
    torch.testing.assert_close(model(images), features.mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"])


def norm(features: Tensor, module: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(features, None, None, module.weight, module.bias, training=True)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("side", [8, 7])
def test_a_residual_block_written_out(shortcut: str, side: int) -> None:
    block, images = BasicBlock(4, 10, 2, shortcut), torch.randn(3, 4, side, side)
    residual = torch.relu(norm(F.conv2d(images, block.conv1.weight, stride=2, padding=1), block.bn1))
    residual = norm(F.conv2d(residual, block.conv2.weight, padding=1), block.bn2)
    if shortcut == "A":
        identity = torch.zeros_like(residual)
        for row in range(residual.shape[2]):
            for column in range(residual.shape[3]):
                identity[:, :4, row, column] = images[:, :, 2 * row, 2 * column]
    else:
        assert isinstance(block.shortcut, nn.Sequential)
        convolution, batch_norm = block.shortcut
        assert isinstance(batch_norm, nn.BatchNorm2d)
        identity = norm(F.conv2d(images, convolution.get_parameter("weight"), stride=2), batch_norm)
    torch.testing.assert_close(block(images), torch.relu(identity + residual))


def test_residual_stages_halve_the_image_and_double_the_channels() -> None:
    model = models.resnet20(COLOUR, 10)
    shapes: list[tuple[int, ...]] = []
    for stage in (model.layer1, model.layer2, model.layer3):
        assert isinstance(stage, nn.Module)
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    model(torch.randn(2, *COLOUR))
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_a_residual_network_written_out_around_its_stages() -> None:
    model, images = models.resnet20(COLOUR, 10), torch.randn(4, *COLOUR)
    p, stages = dict(model.named_parameters()), dict(model.named_children())
    batch_norm = stages["bn1"]
    assert isinstance(batch_norm, nn.BatchNorm2d)
    features = torch.relu(norm(F.conv2d(images, p["conv1.weight"], padding=1), batch_norm))
    features = stages["layer3"](stages["layer2"](stages["layer1"](features)))
    torch.testing.assert_close(model(images), features.mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"])


def test_shortcut_a_has_no_parameters() -> None:
    assert list(PaddedIdentity(2, 16).parameters()) == []
    kinds = [type(module).__name__ for module in models.resnet20(COLOUR, 10).modules()]
    assert (kinds.count("PaddedIdentity"), kinds.count("Identity")) == (2, 7)


# --- the configurable mlp


@pytest.mark.parametrize("hidden", [[], [5], [6, 4, 3]])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_written_out(hidden: list[int], activation: str) -> None:
    model = models.mlp([2, 3], 4, hidden=hidden, activation=activation, init="torch")
    p, features = model.state_dict(), torch.randn(5, 2, 3)
    expected = features.reshape(5, 6)
    for i in range(1, len(hidden) + 1):
        expected = getattr(torch, activation)(expected @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"])
    i = len(hidden) + 1
    torch.testing.assert_close(model(features), expected @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"])


def test_mlp_biases_and_batch_norm_are_choices() -> None:
    sizes = 6 * 5 + 5 * 4
    assert parameters(models.mlp([6], 4, hidden=[5])) == sizes + 5 + 4
    assert parameters(models.mlp([6], 4, hidden=[5], bias=False)) == sizes
    # Before batch norm there is no bias, for its gradient would be zero
    model = models.mlp([6], 4, hidden=[5], batch_norm=True)
    assert parameters(model) == sizes + 2 * 5 + 4
    F.cross_entropy(model(torch.randn(8, 6)), torch.arange(8) % 4).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("hidden", [[0], [3, -1], [2.5], [True]])
def test_mlp_widths_that_are_none_are_refused(hidden: list[int]) -> None:
    with pytest.raises(ModelError, match="mlp: hidden=") as error:
        models.mlp([6], 4, hidden=hidden)
    one_line(error)


# --- initial weights

BIG = 30_000  # elements above which the sample deviation is within 2 % of the true one, five standard errors


def fans(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    area = weight[0, 0].numel() if weight.dim() > 2 else 1
    return weight.shape[1] * area, weight.shape[0] * area


@pytest.mark.parametrize(("name", "inputs"), [("lenet_300_100", GREY), ("conv_6", COLOUR), ("vgg16_bn", COLOUR)])
@pytest.mark.parametrize("init", INITIALISATIONS)
def test_initial_weights_have_the_documented_distribution(name: str, inputs: list[int], init: str) -> None:
    torch.manual_seed(0)
    model = build(name)(inputs, 10, init=init)
    seen = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
        if not isinstance(module, CONV | LINEAR):
            continue
        if init != "torch" and module.bias is not None:
            assert bool((module.bias == 0).all())
        fan_in, fan_out = fans(module)
        fan = fan_out if isinstance(module, CONV) else fan_in
        deviation = {
            "xavier_normal": sqrt(2 / (fan_in + fan_out)),
            "kaiming_normal": sqrt(2 / fan),
            "kaiming_uniform": sqrt(2 / fan),
            "torch": sqrt(1 / (3 * fan_in)),  # PyTorch's default is uniform on +-1 / sqrt(fan_in)
        }[init]
        weight = module.weight.detach()
        if weight.numel() < BIG:
            continue
        seen += 1
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(weight.mean().item()) < 5 * deviation / sqrt(weight.numel())
        # A normal sample of this size passes three deviations, a uniform one ends at sqrt(3) of them
        reach = weight.abs().max().item() / deviation
        assert reach > 3 if init.endswith("normal") else sqrt(3) * 0.99 < reach < sqrt(3) * 1.01
    assert seen >= 2


@pytest.mark.parametrize(("name", "inputs"), OURS)
def test_defaults_are_those_of_the_papers(name: str, inputs: list[int]) -> None:
    init = "xavier_normal" if name.startswith(("lenet", "conv")) else "kaiming_normal"
    torch.manual_seed(1)
    default = build(name)(inputs, 10).state_dict()
    torch.manual_seed(1)
    named = build(name)(inputs, 10, init=init).state_dict()
    assert all(torch.equal(default[key], named[key]) for key in default)


def test_weights_follow_the_global_seed() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return models.resnet20(COLOUR, 10).get_parameter("conv1.weight")

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


# --- what is refused


@pytest.mark.parametrize(("name", "inputs"), OURS)
def test_shapes_and_classes_that_make_no_sense_are_refused(name: str, inputs: list[int]) -> None:
    bad: list[tuple[list[int], int]] = [([], 10), ([1, 0, 28], 10), ([1, -28, 28], 10), (inputs, 0), (inputs, True)]
    for shape, classes in bad:
        with pytest.raises(ModelError, match=f"^{name}: ") as error:
            build(name)(shape, classes)
        one_line(error)


@pytest.mark.parametrize(("name", "inputs"), OURS[2:])
def test_image_models_want_images(name: str, inputs: list[int]) -> None:
    with pytest.raises(ModelError, match=rf"{name}: shape=\[784\] is no image: .* model=mlp") as error:
        build(name)([784], 10)
    one_line(error)


@pytest.mark.parametrize(("name", "inputs"), OURS)
def test_unknown_initialisations_are_refused_with_the_known_ones(name: str, inputs: list[int]) -> None:
    with pytest.raises(
        ModelError, match="there is no 'xavier': choose kaiming_normal, kaiming_uniform, torch, xav"
    ) as e:
        build(name)(inputs, 10, init="xavier")
    one_line(e)


def test_unknown_shortcuts_and_activations_are_refused() -> None:
    with pytest.raises(ModelError, match="resnet56: shortcut: there is no 'C': choose A, B") as error:
        models.resnet56(COLOUR, 10, shortcut="C")
    one_line(error)
    with pytest.raises(ModelError, match="mlp: activation: there is no 'rleu': choose elu") as error:
        models.mlp(GREY, 10, activation="rleu")
    one_line(error)


# --- torchvision and timm


@pytest.mark.parametrize("builder", ["torchvision_model", "timm_model"])
@pytest.mark.parametrize("inputs", [GREY, COLOUR, [5, 32, 40]])
def test_library_models_fit_any_channels(builder: str, inputs: list[int]) -> None:
    pytest.importorskip(builder.partition("_")[0])
    torch.manual_seed(0)
    # By default timm starts the last batch norm of a block at 0, so that no gradient reaches the block at first
    further = {"zero_init_last": False} if builder == "timm_model" else {}
    model = build(builder)("resnet18", inputs, 7, **further)
    assert model.training
    # ResNet-18: 11,689,512 parameters for 3 channels and 1,000 classes
    assert parameters(model) == 11_689_512 - 513 * (1000 - 7) + 64 * 49 * (inputs[0] - 3)
    statistics = [value for key, value in model.state_dict().items() if key.endswith(("running_mean", "tracked"))]
    assert all(bool((value == 0).all()) for value in statistics)  # trying the model out left no trace
    logits = model(torch.randn(4, *inputs))
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    stem = model.get_parameter("conv1.weight")
    assert stem.std().item() == pytest.approx(sqrt(2 / (64 * 49)), rel=0.1)  # He's fan_out, whatever the channels


def test_library_models_are_those_of_the_library() -> None:
    library = pytest.importorskip("torchvision.models")
    torch.manual_seed(5)
    ours, after = models.torchvision_model("squeezenet1_1", [3, 64, 64], 10, dropout=0.25), torch.rand(1)
    torch.manual_seed(5)
    theirs, after_theirs = library.squeezenet1_1(num_classes=10, dropout=0.25), torch.rand(1)
    assert str(ours) == str(theirs)
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(after, after_theirs)


def test_models_with_auxiliary_classifiers_give_one_tensor_in_training() -> None:
    pytest.importorskip("torchvision")
    assert models.torchvision_model("googlenet", COLOUR, 10)(torch.randn(2, *COLOUR)).shape == (2, 10)


def test_a_vision_transformer_takes_the_size_of_the_images() -> None:
    pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 8, "depth": 1}
    assert models.timm_model("vit_tiny_patch16_224", COLOUR, 10, **small)(torch.randn(2, *COLOUR)).shape == (2, 10)
    with pytest.raises(ModelError, match=r"vit_tiny_patch16_224: cannot read images of shape \[3, 32, 32\]") as error:
        models.timm_model("vit_tiny_patch16_224", COLOUR, 10, depth=1)
    assert "+model.img_size=32" in one_line(error)


@pytest.mark.parametrize(
    ("builder", "name", "mend"),
    [
        ("torchvision_model", "resnet81", "torchvision: there is no 'resnet81': choose .*resnet18"),
        ("timm_model", "resnet81", "timm: there is no 'resnet81': choose .*resnet"),
        ("timm_model", "hf-hub:someone/something", "timm: there is no 'hf-hub:someone/something': choose "),
        ("torchvision_model", "fcn_resnet50", "torchvision: there is no 'fcn_resnet50': choose"),  # segments
        ("torchvision_model", "", r"torchvision: there is no '': choose one of its \d+ names"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_ones(builder: str, name: str, mend: str) -> None:
    pytest.importorskip(builder.partition("_")[0])
    with pytest.raises(ModelError, match=mend) as error:
        build(builder)(name, COLOUR, 10)
    one_line(error)


@pytest.mark.parametrize(
    ("builder", "demanding"), [("torchvision_model", "squeezenet1_0"), ("timm_model", "vit_tiny_patch16_224")]
)
def test_unknown_arguments_and_images_too_small_are_refused(builder: str, demanding: str) -> None:
    pytest.importorskip(builder.partition("_")[0])
    with pytest.raises(ModelError, match=r"resnet18: .* cannot build it so .*colour") as error:
        build(builder)("resnet18", COLOUR, 10, colour="red")
    one_line(error)
    with pytest.raises(ModelError, match=rf"{demanding}: cannot read images of shape \[1, 8, 8\]") as error:
        build(builder)(demanding, [1, 8, 8], 10)
    one_line(error)
    with pytest.raises(ModelError, match=r"resnet18: shape=\[784\] is no image") as error:
        build(builder)("resnet18", [784], 10)
    one_line(error)


def test_a_model_that_gives_no_logits_is_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"resnet18: gives list for one image, not \[1, 10\]") as error:
        models.timm_model("resnet18", COLOUR, 10, features_only=True)
    one_line(error)
    every_token = {"global_pool": "", "img_size": 32, "patch_size": 8, "depth": 1}
    with pytest.raises(ModelError, match=r"gives \[1, 17, 10\] for one image, not \[1, 10\]") as error:
        models.timm_model("vit_tiny_patch16_224", COLOUR, 10, **every_token)
    one_line(error)


@pytest.mark.parametrize(("builder", "module"), [("torchvision_model", "torchvision.models"), ("timm_model", "timm")])
def test_a_missing_package_is_named_with_its_mend(builder: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(
        ModelError, match=rf"resnet18: {package} is not installed: pip install 'sparse.*\[vision\]'"
    ) as e:
        build(builder)("resnet18", COLOUR, 10)
    one_line(e)


# --- configuration


def test_one_file_a_model() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {name for name, _ in OURS} | {
        "torchvision",
        "timm",
        "transformers",
        "llama",
        "bert",
        "smollm2",
        "minilm",
        "run",
    }


@pytest.mark.parametrize("name", [name for name, _ in OURS] + ["torchvision", "timm"])
def test_configurations_build_their_model_with_its_defaults(name: str) -> None:
    library = name in ("torchvision", "timm")
    if library:
        pytest.importorskip(name)
    text = (CONF / f"{name}.yaml").read_text()
    override = " model.name=resnet18" if library else ""
    assert text.startswith(f"# python -m experiments.run model={name}{override}\n")
    config = OmegaConf.create({"model": OmegaConf.create(text)})
    torch.manual_seed(0)
    facts = {"shape": COLOUR, "classes": 10, "outputs": 10}
    model = instantiate(completed("model", OmegaConf.to_container(config.model), facts))
    torch.manual_seed(0)
    direct = build(f"{name}_model")("resnet18", COLOUR, 10) if library else build(name)(COLOUR, 10)
    assert str(model) == str(direct)
    pairs = zip(model.state_dict().values(), direct.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "mlp", "conv_2", "resnet20", "vgg16_bn"])
def test_width_scales_every_hidden_layer(name: str) -> None:
    """Twice the width, four times the weights between hidden layers, twice those at the ends; half works too."""
    shape = [1, 28, 28] if name.startswith(("lenet", "mlp")) else [3, 32, 32]
    build = getattr(models, name)
    plain, same, wide = build(shape, 10), build(shape, 10, width=1.0), build(shape, 10, width=2)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in same.parameters()]
    for (key, small), large in zip(plain.named_parameters(), wide.parameters(), strict=True):
        kernel = large.shape[2:] == small.shape[2:]
        assert kernel, key
        ratios = {a / b for a, b in zip(large.shape, small.shape, strict=True)}
        assert ratios <= {1.0, 2.0}, key
    first, *hidden, last = (p for p in wide.parameters() if p.dim() >= 2)
    narrow_first, *narrow_hidden, narrow_last = (p for p in plain.parameters() if p.dim() >= 2)
    assert first.numel() == 2 * narrow_first.numel()
    assert last.numel() == 2 * narrow_last.numel()
    assert all(a.numel() == 4 * b.numel() for a, b in zip(hidden, narrow_hidden, strict=True))
    half = build(shape, 10, width=0.5)
    assert half(torch.zeros(2, *shape)).shape == (2, 10)
    with pytest.raises(ModelError, match="width"):
        build(shape, 10, width=0)
