"""What a command imports before it does anything: counted, as seconds differ from machine to machine."""

from pathlib import Path

import pytest

from experiments.records.runs import record_state
from tests.commands import command as run_command

SLOW = ("pandas", "matplotlib", "plotly", "torchvision", "torchmetrics", "transformers", "accelerate", "sklearn")
SLOW += ("scipy", "mlxtend", "jinja2", "wandb", "tensorboard", "timm", "onnx", "ray", "optuna", "submitit", "triton")
SLOW += ("torch._dynamo", "torch._inductor", "torch.utils.flop_counter")

COMMANDS = {
    "experiments.run --help": 0,
    "experiments.run --cfg job": 0,
    "experiments.status runs": 0,
    "experiments.store ls": 0,
    "experiments.status nowhere": 1,
}


def imported(folder: Path, command: str, code: int = 0) -> set[str]:
    """The modules that a command has imported when it ends."""
    module, *words = command.split()
    script = (
        f"import atexit, runpy, sys\n"
        f"atexit.register(lambda: open('modules', 'w').write('\\n'.join(sys.modules)))\n"
        f"sys.argv[1:] = {words}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = run_command(folder, "-c", script, libraries=("torch",))
    assert done.returncode == code, done.stderr
    return set((folder / "modules").read_text().split())


@pytest.fixture
def folder(tmp_path) -> Path:
    """One with a run and an empty store."""
    for name in ("one", "store"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    with record_state(tmp_path / "runs" / "one", "python -m experiments.run"):
        pass
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_computes_nothing_imports_nothing_slow(folder, command):
    found = imported(folder, command, COMMANDS[command])
    assert {"torch", "pruning", "experiments.runtime.errors"} <= found
    assert sorted(found & set(SLOW)) == []


def test_what_is_slow_is_imported_where_it_is_used(folder):
    """So the names above are those of modules, and the test above could fail."""
    small = "data=digits model=mlp model.hidden=[4] training.epochs=1 recovery.epochs=0 density=0.5"
    found = imported(folder, f"experiments.run {small}")
    assert {"accelerate", "sklearn", "scipy", "torchmetrics"} <= found
    assert not found & {"plotly", "wandb", "experiments.results.figures"}
