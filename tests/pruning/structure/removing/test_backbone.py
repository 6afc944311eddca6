"""A part of a larger model is made smaller alone, where the code around it cannot be traced."""

import pytest
import torch
from torch import nn

from pruning import Evidence, prunable, prune, scorers
from pruning.errors import StructureError
from pruning.structure import Channels, remove, trace, verify


class Detector(nn.Module):
    """Whose boxes are chosen by values, as by non-maximum suppression."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1)),
        )
        self.boxes = nn.Conv2d(6, 5, 1)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        found = self.boxes(self.backbone(torch.stack(images))).flatten(2).transpose(1, 2)
        return [boxes[boxes[:, 0] > boxes[:, 0].mean().item(), 1:].detach() for boxes in found]


def test_the_backbone_of_a_detector():
    model, images = Detector().eval(), [torch.randn(3, 16, 16) for _ in range(2)]
    whole = trace(model, (images,))
    assert sum(family.size for family in whole.families) < 20  # what the boxes are chosen by is in the way
    inputs = torch.stack(images)
    structure = trace(model.backbone, inputs)
    assert [family.size for family in structure.families] == [8, 12]
    scores = scorers.magnitude(Evidence(model.backbone, prunable(model.backbone)))
    masks = prune(scores, 0.5, Channels(structure))
    expected = Detector().eval()
    expected.load_state_dict(model.state_dict())
    masks.apply_(expected.backbone)
    dense, model.backbone = model.backbone, remove(model.backbone, masks, structure)
    assert verify(dense, masks, model.backbone, inputs) <= 1e-5
    assert sum(p.numel() for p in model.backbone.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    assert model.backbone(inputs).shape == dense(inputs).shape  # what the head reads
    for found, box in zip(model(images), expected(images), strict=True):
        assert torch.allclose(found, box, atol=1e-5)
    with pytest.raises(StructureError, match="trace this model"):
        remove(model, masks.__class__({f"backbone.{name}": mask for name, mask in masks.items()}), structure)
