"""python -m experiments.benchmarks.products: one Linear on small batches, dense and with either sparse product.

Forward passes without gradients, and steps of training (forward, all gradients, fused Adam) as `execution=auto`
measures them: how many times as fast as the dense layer (in training under its mask) the layer is with products that
are bags, and with MKL's CSR product. Medians over turns.
"""

import argparse
import json
from functools import partial
from itertools import product

import torch
from torch import nn

from experiments.benchmarks.measuring import median_ratio
from pruning.execution import sparse_execution
from pruning.execution.crossover import Case, measured
from pruning.execution.timing import in_turn


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layer", nargs="+", default=["1024x1024", "300x784", "1536x384"], help="outputs x inputs")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.02, 0.01])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'layer':>9} {'density':>7} {'batch':>5}  forward: bags    csr  training: bags    csr")
    found = []
    for layer, density, batch in product(arguments.layer, arguments.density, arguments.batch):
        outputs, inputs = map(int, layer.split("x"))
        case = Case(outputs, inputs, batch, 0, density, arguments.dtype, arguments.threads)
        forward, training = of_forward(case, arguments.rounds), measured(case, arguments.rounds)
        found.append({"layer": layer, "density": density, "batch": batch, "forward": forward, "training": training})
        print(
            f"{layer:>9} {density:>7g} {batch:>5}  {forward['sparse']:>13.2f} {forward['csr']:>6.2f}"
            f"  {training['sparse']:>14.2f} {training.get('csr', float('nan')):>6.2f}",
            flush=True,
        )
    print(json.dumps(found))


def of_forward(case: Case, rounds: int) -> dict[str, float]:
    """Dense seconds / seconds of each sparse form, of a forward pass without gradients."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    mask = {"weight": torch.rand(case.outputs, case.inputs) < case.density}
    forms = {form: nn.Linear(case.inputs, case.outputs, dtype=dtype) for form in ("dense", "sparse", "csr")}
    sparse_execution(forms["sparse"], mask)
    sparse_execution(forms["csr"], mask, layers={"weight": case.rows})
    inputs = torch.randn(case.rows, case.inputs, dtype=dtype)
    with torch.inference_mode():
        seconds = in_turn({form: partial(layer, inputs) for form, layer in forms.items()}, rounds)
    return {form: median_ratio(seconds["dense"], seconds[form]) for form in ("sparse", "csr")}


if __name__ == "__main__":
    main()
