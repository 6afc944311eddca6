"""What there is to choose from: what each scorer needs, what it costs, and where it comes from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pruning.scorers.activation import wanda
from pruning.scorers.change import change
from pruning.scorers.controls import absolute, inverted, layer_shuffled
from pruning.scorers.fisher import fisher
from pruning.scorers.gradient import gradient
from pruning.scorers.grasp import grasp
from pruning.scorers.hessian import obd
from pruning.scorers.magnitude import lamp, magnitude
from pruning.scorers.movement import movement
from pruning.scorers.obs import obs, woodfisher
from pruning.scorers.random import random
from pruning.scorers.snip import snip
from pruning.scorers.synflow import synflow
from pruning.scorers.taylor import taylor

Needs = Literal["nothing", "initial weights", "a shape", "data", "gradients", "curvature", "training", "a scorer"]


@dataclass(frozen=True)
class Entry:
    """One scorer.

    Attributes:
        name: of its file in experiments/conf/scorer/.
        scorer: with the options that make it the one of the paper.
        needs: the most demanding thing that it takes from the evidence.
        forward, backward: passes through the network for every batch; C is the number of outputs.
        paper: where it is defined.
    """

    name: str
    scorer: Callable[..., Any]
    needs: Needs
    forward: str
    backward: str
    paper: str

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        found = re.match(r"(.+?)\.(\s|$)", (self.scorer.__doc__ or "").strip(), re.DOTALL)
        return " ".join(found[1].split()) if found else ""


CATALOGUE = (
    Entry("magnitude", magnitude, "nothing", "0", "0", "Han et al. 2015"),
    Entry("lamp", lamp, "nothing", "0", "0", "Lee et al. 2021"),
    Entry("random", random, "nothing", "0", "0", "baseline"),
    Entry("change", change, "initial weights", "0", "0", "Zhou et al. 2019; Ansell et al. 2022"),
    Entry("synflow", synflow, "a shape", "1 in all", "1 in all", "Tanaka et al. 2020"),
    Entry("wanda", wanda, "data", "1", "0", "Sun et al. 2023"),
    Entry("obs", obs, "data", "1", "0", "Hassibi & Stork 1993; Dong et al. 2017; Frantar & Alistarh 2023"),
    Entry("gradient", gradient, "gradients", "1", "1", "Evci et al. 2020"),
    Entry("taylor", taylor, "gradients", "1", "1", "Molchanov et al. 2017, 2019"),
    Entry("snip", snip, "gradients", "1", "1", "Lee et al. 2019"),
    Entry("fisher", fisher, "gradients", "1", "1", "Sung et al. 2021"),
    Entry("woodfisher", woodfisher, "gradients", "1", "1", "Singh & Alistarh 2020"),
    Entry("grasp", grasp, "curvature", "2", "3", "Wang et al. 2020"),
    Entry("obd", obd, "curvature", "1", "C", "Le Cun et al. 1990"),
    Entry("movement", movement, "training", "1", "1", "Sanh et al. 2020; Lagunas et al. 2021"),
    Entry("layer_shuffled", layer_shuffled, "a scorer", "its", "its", "Su et al. 2020; Frankle et al. 2021"),
    Entry("inverted", inverted, "a scorer", "its", "its", "Frankle et al. 2021"),
    Entry("absolute", absolute, "a scorer", "its", "its", "for supports"),
)


def table() -> str:
    """The catalogue as Markdown."""
    lines = ["| scorer | score | needs | passes a batch | paper |", "| --- | --- | --- | --- | --- |"]
    for entry in CATALOGUE:
        passes = entry.forward if entry.forward == "its" else f"{entry.forward} forward, {entry.backward} backward"
        passes = "none" if (entry.forward, entry.backward) == ("0", "0") else passes
        passes = "1 forward, 1 backward in all" if entry.forward == "1 in all" else passes
        summary = entry.summary.replace("|", "\\|")
        lines.append(f"| `{entry.name}` | {summary} | {entry.needs} | {passes} | {entry.paper} |")
    return "\n".join(lines)
