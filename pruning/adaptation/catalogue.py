"""The functional view: adaptations as what each adds to h, the output of the frozen part, with x what enters it.

He et al. 2022 see them so; what they train, where it acts, and whether it goes into the weights, follows from the form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Sizes = Mapping[str, int]
"""Of a layer: `inputs`, `outputs`, `width` of the model; of an adaptation: `rank`, `bottleneck`, `length`, `places`."""


@dataclass(frozen=True)
class Family:
    """One adaptation.

    Attributes:
        name: of its file in experiments/conf/adaptation/.
        becomes: what h is with it.
        acts: where.
        trained: how many weights that takes, in words of `Sizes`, for the layer or position where it acts.
        count: the same as a function.
        merges: whether it can be put into the weights: then inference costs nothing.
        zeros: whether the zeros of a pruned network survive that; None where nothing is merged.
        by: the package that has it.
        paper: where it is defined.
    """

    name: str
    becomes: str
    acts: str
    trained: str
    count: Callable[[Sizes], int]
    merges: bool
    zeros: Literal["yes", "no", "within survivors"] | None
    by: Literal["torch", "here", "peft", "here and peft"]
    paper: str


def _lora(sizes: Sizes) -> int:
    return sizes["rank"] * (sizes["inputs"] + sizes["outputs"])


FAMILIES = (
    Family(
        name="full",
        becomes="(W + D) x",
        acts="any weight",
        trained="inputs · outputs",
        count=lambda s: s["inputs"] * s["outputs"],
        merges=True,
        zeros="no",
        by="torch",
        paper="baseline",
    ),
    Family(
        name="sparse",
        becomes="(W + m ⊙ D) x",
        acts="any weight, any mask m",
        trained="places of m",
        count=lambda s: s["places"],
        merges=True,
        zeros="within survivors",
        by="here",
        paper="Ansell et al. 2022; Sung et al. 2021",
    ),
    Family(
        name="bitfit",
        becomes="h + b",
        acts="biases",
        trained="outputs",
        count=lambda s: s["outputs"],
        merges=True,
        zeros="yes",
        by="here",
        paper="Ben Zaken et al. 2022",
    ),
    Family(
        name="lora",
        becomes="h + (a/r) B A x",
        acts="linear layers",
        trained="rank · (inputs + outputs)",
        count=_lora,
        merges=True,
        zeros="no",
        by="peft",
        paper="Hu et al. 2022",
    ),
    Family(
        name="dora",
        becomes="m ⊙ (W + B A) x / ‖W + B A‖",
        acts="linear layers",
        trained="rank · (inputs + outputs) + outputs",
        count=lambda s: _lora(s) + s["outputs"],
        merges=True,
        zeros="no",
        by="peft",
        paper="Liu et al. 2024",
    ),
    Family(
        name="qlora",
        becomes="Q(W) x + (a/r) B A x",
        acts="linear layers in 4 bits",
        trained="rank · (inputs + outputs)",
        count=_lora,
        merges=False,
        zeros=None,
        by="here and peft",
        paper="Dettmers et al. 2023",
    ),
    Family(
        name="sparse_lora",
        becomes="(W + m ⊙ D) x + (a/r) B A x",
        acts="linear layers, any mask m",
        trained="places of m, rank · (inputs + outputs)",
        count=lambda s: s["places"] + _lora(s),
        merges=True,
        zeros="no",
        by="here and peft",
        paper="Nikdan et al. 2024",
    ),
    Family(
        name="ia3",
        becomes="l ⊙ h, or W (l ⊙ x)",
        acts="keys, values, feed-forward layers",
        trained="outputs, or inputs",
        count=lambda s: s["outputs"],
        merges=True,
        zeros="yes",
        by="peft",
        paper="Liu et al. 2022",
    ),
    Family(
        name="adapters",
        becomes="h + s U f(D x), or h + s U f(D h)",
        acts="feed-forward layers",
        trained="2 · width · bottleneck + bottleneck + width",
        count=lambda s: 2 * s["width"] * s["bottleneck"] + s["bottleneck"] + s["width"],
        merges=False,
        zeros=None,
        by="here",
        paper="Houlsby et al. 2019; He et al. 2022",
    ),
    Family(
        name="prefix",
        becomes="(1 - λ) h + λ softmax(q Pₖᵀ) Pᵥ",
        acts="attention",
        trained="2 · length · width",
        count=lambda s: 2 * s["length"] * s["width"],
        merges=False,
        zeros=None,
        by="here and peft",
        paper="Li & Liang 2021",
    ),
    Family(
        name="prompt",
        becomes="f([P; x])",
        acts="the input",
        trained="length · width",
        count=lambda s: s["length"] * s["width"],
        merges=False,
        zeros=None,
        by="here",
        paper="Lester et al. 2021",
    ),
)


def table() -> str:
    """The families as Markdown."""
    lines = ["| adaptation | h becomes | acts on | trains | merges | zeros survive | by | paper |", "| --- " * 8 + "|"]
    for family in FAMILIES:
        becomes = family.becomes.replace("|", "\\|")
        merges, zeros = "yes" if family.merges else "no", family.zeros or "untouched"
        cells = [f"`{family.name}`", becomes, family.acts, family.trained, merges, zeros, family.by, family.paper]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
