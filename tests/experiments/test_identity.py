"""What a stage uses is in its identity: every field that it reads, and all code of ours that it runs."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments import records
from experiments import run as app
from experiments.configuration import Configuration
from experiments.configuration.views import UndeclaredFieldError
from experiments.running import controls, stages
from experiments.running.conditions import conditions
from experiments.running.parts import made_from
from experiments.running.setting import Setting
from experiments.store import Artefact, Store, sources, syntax
from experiments.store.identity import WITHOUT_EFFECT, identity_of
from experiments.store.inventory import _parents
from experiments.store.networks import Network
from pruning.errors import ConfigurationError
from tests.commands import command
from tests.experiments.running import ROOT, SMALL, configured, own, run, timeless

ELSEWHERE = {"data.load.folder": "where the files of a known set lie"}
"""Fields that stages read and that no identity holds, and why."""

ONE_OF = ("adaptation.learning_rate", "adaptation.budget", "adaptation.widen")
"""Fields of which each network is made with one value of several, which its key holds."""

RUNS = {
    "rounds": ("schedule=exponential", "schedule.rounds=2", "density=0.2", "recovery.rounds=last", "training.clip=1",
               "task.label_smoothing=0.1", "learning_rate=cosine"),
    "controls": ("density=0.3", "compensate=bias", "controls=[reinit,shuffle,random,small_dense]"),
    "rewound": ("recovery=rewind", "recovery.to=5it", "density=0.3", "controls=[reinit,shuffle]", "scorer=snip"),
    "replayed": ("recovery=lr_rewind", "recovery.to=1ep", "density=0.3", "recovery.batchnorm_batches=3",
                 "model.batch_norm=true"),
    "compensated": ("scorer=obs", "density=0.3", "scoring.examples=200", "recovery=none"),
    "gradual": ("dynamic=gradual", "dynamic.every=5", "density=0.3", "granularity=vectors", "controls=[shuffle]"),
    "rigl": ("dynamic=rigl", "dynamic.every=5", "density=0.3", "controls=[random]"),
    "movement": ("dynamic=movement", "density=0.3", "recovery.epochs=2"),
    "soft": ("dynamic=soft_mask", "granularity=vectors", "density=0.3", "recovery.epochs=2"),
    "channels": ("granularity=channels", "allocation=macs", "density=0.5", "scorer=taylor", "latency=8"),
    "gradual channels": ("dynamic=gradual", "granularity=channels", "density=0.5", "dynamic.every=5"),
    "codes": ("dynamic=auto_pruner", "granularity=channels", "density=0.5", "recovery.epochs=2"),
    "distilled": ("distillation=logits", "density=0.3", "controls=[reinit,shuffle,small_dense]"),
    "distilled states": ("distillation=combined", "distillation.terms.hidden.layers=[fc1]", "density=0.3",
                         "recovery=rewind"),
    "adapted": ("adaptation=sparse", "adaptation.budget=300", "adaptation.dense=[fc3.*]", "exclude=[fc3*]",
                "density=0.3", "recovery.learning_rate=restart", "training.trainable=[fc3.*]"),
    "adapted by changes": ("adaptation=lt_sft", "adaptation.budget=300", "density=1.0", "adaptation.tuned=[1e-2]"),
    "low rank": ("adaptation=lora", "adaptation.budget=['lora:1','lora:2']", "density=0.3"),
    "sparse": ("execution=sparse", "density=0.1", "include=[fc1.*,fc2.*]", "optimizer=sgd"),
}  # fmt: skip


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path → what lies there."""
    if not isinstance(value, Mapping) or not (value or not path):
        return {path: value}
    inner = (leaves(item, f"{path}.{key}" if path else key) for key, item in value.items())
    return {name: leaf for found in inner for name, leaf in found.items()}


class Watched(Setting):
    """Whose whole configuration is out of reach while an artefact is made: stages have their views."""

    @property
    def config(self) -> Configuration:
        assert self.taken is not None or not MAKING
        return super().config


MAKING: list[str] = []
"""Kinds of the artefacts that are being made."""


class Watch:
    """The artefacts of a run: their identities, what was run until they were there, and the networks of its stages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.modules: set[str] = set()
        self.networks: list[tuple[Configuration, Network]] = []
        self.identities: dict[str, dict[str, Any]] = {}
        self.behind: dict[str, set[str]] = {}
        self.found: list[tuple[Artefact, set[str]]] = []
        self._last: Any = None
        for name in ("initial", "dense", "rewind_point", "train_whole", "prune", "shuffle", "recover", "adapt"):
            monkeypatch.setattr(stages, name, self._stage(getattr(stages, name)))
        for module in (app, controls):
            monkeypatch.setattr(module, "evaluate", self._stage(module.evaluate))
        monkeypatch.setattr(Store, "obtain", self._obtain(Store.obtain))
        monkeypatch.setattr(sources, "_digest", self._digest(sources._digest))
        monkeypatch.setattr("experiments.running.levels.processor", str)  # its answer is itself in the identity
        # What rows tell beside results looks at every target
        monkeypatch.setattr(stages.trained, "conditions", lambda _, *more: conditions({}, *more))

    def _stage(self, stage):
        def call(setting, *arguments, **options):
            outer = self.modules.copy()
            self.modules.clear()
            sys.setprofile(self._called)
            try:
                made = stage(setting, *arguments, **options)
                made = list(made) if isinstance(made, Iterator) else made
            finally:
                sys.setprofile(None)
            self.found.append(self._last)
            self.modules |= outer
            for network in made if isinstance(made, list) else [made]:
                if isinstance(network, Network):
                    self.networks.append((setting.whole, network))
            return made

        return call

    def _called(self, frame, event, _):
        if event == "call" and frame.f_code.co_name != "<module>":
            self.modules.add(frame.f_globals.get("__name__", ""))

    def _obtain(self, obtain):
        def call(store, kind, identity, make):
            def making(folder):
                MAKING.append(kind)
                try:
                    make(folder)
                finally:
                    MAKING.pop()

            artefact = obtain(store, kind, identity, making)
            self.identities[artefact.key] = identity
            self._last = artefact, self.modules.copy()
            return artefact

        return call

    def _digest(self, digest):
        def call(starts, without):
            found = digest(starts, without)
            self.behind[found] = set(sources._reached(starts, without)[0])
            return found

        return call

    def history(self, key: str) -> list[dict[str, Any]]:
        """The identities of an artefact and of all that it comes from."""
        identity = self.identities[key]
        return [identity, *(one for parent in _parents(identity) for one in self.history(parent))]

    def code(self, identity: Mapping[str, Any]) -> set[str]:
        return set().union(*(self.behind[value] for key, value in identity.items() if key.startswith("code of ")))


@pytest.fixture(scope="module", params=RUNS)
def watched(request, tmp_path_factory) -> Watch:
    folder = tmp_path_factory.mktemp("watched")
    config = configured("training.epochs=1", *RUNS[request.param])
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch = Watch(monkeypatch)
        app.run(Watched(config, Store(folder / "store")), folder / "run", "name")
    return watch


def test_the_key_of_a_network_holds_every_field_that_its_stages_could_read(watched):
    """Of their views: the fields taken, and those inherited from what they start from, with their values."""
    assert {artefact.kind for artefact, _ in watched.found} >= {"dense", "recovered", "rows"}
    for config, network in watched.networks:
        histories = [one for key in network.key.split("+") for one in watched.history(key)]
        held = [(path, value) for one in histories for path, value in leaves(one).items()]
        for field in network.fields:
            group, _, name = field.partition(".")
            value = config.as_dict()[group]
            read = leaves(value.get(name) if name else value, field)
            paths = {path for path, _ in held}
            lacking = [
                path
                for path in read
                if path not in ELSEWHERE and (path not in paths if path in ONE_OF else (path, read[path]) not in held)
            ]
            assert not lacking, f"the key of {network.weights.kind} lacks {lacking}"
        assert {"seed", "model"} <= network.fields


def test_a_stage_reads_what_it_takes_and_what_it_inherits_and_nothing_else(tmp_path):
    setting = Setting(configured("recovery.epochs=3"), Store(tmp_path))
    view = setting.only("recovery.factor", "data.load", after=["seed", "training.batch_size"])
    assert view.config.recovery.factor == 1.0
    assert view.config.seed == 0
    assert view.config.checkpoint.seconds == 60.0
    assert view.epoch_steps == setting.epoch_steps
    assert set(view.identity()) >= {"recovery", "data", "content of data"}
    assert not set(view.identity()) & {"seed", "training"}
    for read in (
        lambda: view.config.when,
        lambda: view.config.recovery.epochs,
        lambda: view.config.training.epochs,
        lambda: view.config.data["name"],
        lambda: view.config.data.get("augment"),
        lambda: view.total_steps,
        lambda: view.only("model"),
        lambda: view.only("recovery"),
        lambda: list(view.config.recovery),
        lambda: "factor" in view.config.recovery,
        lambda: bool(view.config.recovery),
    ):
        with pytest.raises(UndeclaredFieldError):
            read()


def test_a_part_is_shared_and_still_only_for_who_has_its_fields(tmp_path):
    setting = Setting(configured(), Store(tmp_path))
    assert setting.only("data.load").splits is setting.splits
    assert setting.only("task").task == setting.task
    assert setting.task is not setting.task  # which a stage may change
    with pytest.raises(UndeclaredFieldError, match="task"):
        _ = setting.only("seed", "model").task

    class Greedy(Setting):
        @made_from("seed")
        def more(self) -> int:
            return self.config.training.epochs

    with pytest.raises(UndeclaredFieldError, match="training"):
        _ = Greedy(configured(), Store(tmp_path)).more


def test_all_code_of_ours_that_a_stage_runs_is_in_its_identity(watched):
    for artefact, modules in watched.found:
        counted = set().union(*map(watched.code, watched.history(artefact.key)))
        ours = {module for module in modules if module.split(".")[0] in sources.OWN}
        lacking = {module for module in ours - counted if not sources._among(module, WITHOUT_EFFECT)}
        assert not lacking, f"{artefact.kind} runs {sorted(lacking)}"
        assert ours


NEEDS = {
    "initial": {"experiments.models.mlp", "experiments.runtime.seeding", "experiments.configuration.targets"},
    "dense": {
        "experiments.training.loop",
        "experiments.tasks.classification",
        "experiments.data.embedded",
        "experiments.training.learning_rate",
    },
    "masks": {
        "pruning.pipeline",
        "pruning.selection.threshold",
        "pruning.allocation",
        "pruning.scorers.obs",
        "pruning.evidence",
    },
    "recovered": {"pruning.dynamic.regime", "pruning.attachment", "pruning.recovery", "pruning.execution.alternating"},
    "rows": {"experiments.running.levels", "experiments.tasks.classification", "pruning.cost"},
}
"""Kind → some of the code that makes it."""

PRUNES = ("pruning.scorers", "pruning.selection", "pruning.pipeline", "pruning.allocation", "pruning.granularity")
NEVER = (
    *WITHOUT_EFFECT,
    "experiments.configuration.checks",
    "experiments.configuration.schema",
    "experiments.results.figures",
    "experiments.report",
    "experiments.run",
)
FREE = {
    "initial": (*PRUNES, "pruning.structure", "pruning.execution", "pruning.curvature", "pruning.cost"),
    "dense": (*PRUNES, "pruning.structure", "pruning.execution", "pruning.curvature", "pruning.cost"),
    "masks": ("pruning.structure", "pruning.execution", "experiments.running.levels", "experiments.running.controls"),
    "recovered": (
        *(*PRUNES, "pruning.structure", "pruning.execution.product", "experiments.running.levels"),
        *("experiments.distillation", "experiments.running.stages.teaching", "experiments.running.models"),
    ),
    "rows": (*PRUNES, "pruning.structure", "pruning.execution", "experiments.running.stages"),
}
"""Kind → code whose edits must not make it again."""


@pytest.mark.parametrize("watched", ["compensated"], indirect=True)
def test_code_counts_where_it_is_run_and_nowhere_else(watched):
    """Of a run of weights, compensated; another's would have channels in its masks, say."""
    code = {kind: set() for kind in NEEDS}
    for artefact, _ in watched.found:
        code[artefact.kind] |= watched.code(watched.identities[artefact.key])
    for identity in watched.identities.values():
        if "draw" in identity:
            code["initial"] |= watched.code(identity)
    for kind, needed in NEEDS.items():
        assert needed <= code[kind], kind
        assert not [module for module in code[kind] if sources._among(module, (*FREE[kind], *NEVER))], kind


# What that is good for


def test_masks_made_by_other_code_are_made_again_and_dense_networks_are_not(tmp_path):
    """The masks of pruning/pipeline.py inverted by hand, as if by mistake; then a docstring, which changes nothing."""
    for name in ("pruning", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def rows() -> list[dict[str, Any]]:
        options = (*SMALL, "training.epochs=1", "density=0.3", "recovery.epochs=1", "name=same")
        done = command(tmp_path, "-m", "experiments.run", *options, path=tmp_path)
        assert done.returncode == 0, done.stderr
        return records.read(tmp_path / "runs" / "same").to_dict("records")

    def edited(name: str, old: str, new: str) -> None:
        text = (tmp_path / "pruning" / name).read_text()
        assert old in text
        (tmp_path / "pruning" / name).write_text(text.replace(old, new))

    first = rows()
    edited("errors.py", "Scores that cannot be ranked", "Scores that nobody can rank")
    edited("masks.py", "\n\n\n", "\n# why\n\n\n")
    inverted = "return Masks({name: ~mask for name, mask in top_share(scores, density).items()})"
    edited("pipeline.py", "return Masks(top_share(scores, density))", inverted)
    second = rows()
    assert second[0]["network"] == first[0]["network"]
    assert second[1]["kept"] == first[1]["prunable"] - first[1]["kept"]
    counts = {kind: len(list((tmp_path / "runs" / "store" / kind).glob("*"))) for kind in NEEDS}
    assert counts == {"initial": 1, "dense": 1, "masks": 2, "recovered": 2, "rows": 3}


def test_code_counts_as_it_was_when_the_run_began(tmp_path, monkeypatch):
    """A scorer that is edited while the dense network trains: what was loaded before goes on."""
    code = "def mine(evidence):\n    return {n: SIGN * w.detach().abs() for n, w in evidence.parameters.items()}\n"
    name = own(tmp_path, monkeypatch, code.replace("SIGN", "-1"))
    options = ("density=0.2", "training.epochs=1", f"scorer._target_={name}.mine")
    train = stages.trained.train

    def editing(*arguments, **more):
        (tmp_path / f"{name}.py").write_text(code.replace("SIGN", "+1"))
        patched.setattr(syntax, "_normal", lambda tree: pytest.fail("read while the run goes on"))
        return train(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(stages.trained, "train", editing)
        first = run(tmp_path, *options, "controls=[shuffle]")
    own(tmp_path, monkeypatch, code.replace("SIGN", "+1"))
    second = run(tmp_path, *options)
    assert second[0]["network"] == first[0]["network"]
    assert second[1]["test_loss"] != first[1]["test_loss"]
    assert second[1]["test_loss"] == run(tmp_path / "fresh", *options)[1]["test_loss"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("controls=[reinit]",), ("controls=[reinit]", "compensate=bias")),
        (("controls=[reinit]",), ("controls=[reinit]", "recovery.batchnorm_batches=5")),
        (("controls=[shuffle]",), ("controls=[shuffle]", "compensate=bias")),
        (("controls=[random]", "scorer=taylor"), ("controls=[random]",)),
        (("training.precision=no",), ("training.precision=bf16",)),
        (("execution=masked",), ("execution=sparse",)),
        (("recovery.factor=1",), ("recovery.factor=0.5",)),
    ],
    ids=str,
)
def test_rows_do_not_depend_on_what_the_store_held(tmp_path, before, after):
    options = ("model.batch_norm=true", "training.epochs=1", "density=0.2")
    run(tmp_path / "shared", *options, *before)
    shared = run(tmp_path / "shared", *options, *after)
    assert timeless(shared) == timeless(run(tmp_path / "empty", *options, *after))


def test_a_control_is_trained_as_the_dense_network_was_whatever_follows_a_pruning(tmp_path):
    options = ("density=0.2", "model.batch_norm=true", "controls=[reinit,random]")
    *_, reinit, random = run(tmp_path, *options)
    recovered = ("compensate=bias", "recovery.batchnorm_batches=5", "recovery.epochs=2")
    *_, ticket, again, other = run(tmp_path, *options, *recovered)
    assert [again["network"], other["network"]] == [reinit["network"], random["network"]]
    assert ticket["network"] not in (again["network"], other["network"])


def test_a_latency_is_of_this_machine_and_its_threads(tmp_path, monkeypatch):
    options = ("density=0.5", "latency=4", "recovery.epochs=1", "training.epochs=1")
    run(tmp_path, *options)
    monkeypatch.setattr("experiments.running.levels.processor", lambda: "another")
    run(tmp_path, *options)
    run(tmp_path, *options)
    count = {kind: len(list((tmp_path / "store" / kind).iterdir())) for kind in ("dense", "masks", "rows")}
    assert count == {"dense": 1, "masks": 1, "rows": 4}


@pytest.mark.parametrize("group", ["granularity", "allocation"])
def test_a_regime_has_the_units_of_its_run_or_is_refused(group):
    other = {"granularity": "pruning.granularity.Vectors,dim:0", "allocation": "pruning.allocation.Uniform"}[group]
    with pytest.raises(ConfigurationError, match=f"dynamic.{group}: .* set {group}="):
        configured("dynamic=gradual", f"dynamic.{group}={{_target_:{other}}}")


def test_networks_of_several_processes_are_others(tmp_path, monkeypatch):
    setting = Setting(configured("training.epochs=0"), Store(tmp_path))
    one = stages.dense(setting)
    monkeypatch.setattr("experiments.running.stages.trained.world_size", lambda: 2)
    assert stages.dense(setting).key != one.key


def test_the_folder_of_a_loader_of_ones_own_counts(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, "def pictures(folder): pass\n")
    loaders = [{"load": {"_target_": f"{name}.pictures", "folder": folder}} for folder in "ab"]
    found = [identity_of({"data": loader}, "data.load") for loader in loaders]
    assert found[0] != found[1]


def test_rows_tell_the_versions_of_what_computes_and_the_device(tmp_path, monkeypatch):
    code = "from pandas import DataFrame\nfrom pruning.scorers import magnitude\n"
    code += "def mine(evidence):\n    assert DataFrame\n    return magnitude(evidence)\n"
    name = own(tmp_path, monkeypatch, code)
    row = run(tmp_path, "density=0.5", f"scorer._target_={name}.mine", "training.epochs=1")[1]
    assert {"python", "torch", "numpy", "scipy", "accelerate", "sklearn", "pandas"} <= set(row["versions"])
    assert not {"torchvision", "matplotlib", "sys", "pruning"} & set(row["versions"])
    assert row["versions"]["pandas"] == __import__("pandas").__version__
    assert row["device"] == "cpu"


def test_versions_of_our_own_libraries_do_not_depend_on_what_is_loaded(monkeypatch):
    config = configured()
    loaded = conditions(config.as_dict())["versions"]
    for name in ("accelerate", "scipy"):
        assert loaded[name] == __import__(name).__version__
        monkeypatch.delitem(sys.modules, name)
    assert conditions(config.as_dict())["versions"] == loaded


def test_weights_that_a_model_reads_from_a_file_count(tmp_path, monkeypatch):
    """Of a user's own model, though nothing says that it reads a file; and the form of a pretrained one."""
    name = own(
        tmp_path,
        monkeypatch,
        "import torch\nfrom torch import nn\n"
        "def net(shape, classes, file, **_):\n"
        "    made = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    made.load_state_dict(torch.load(file))\n"
        "    return made\n",
    )
    options = ("density=0.5", "training.epochs=0", "recovery.epochs=0", f"model._target_={name}.net")
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        torch.save(layers.state_dict(), tmp_path / "weights.pt")
        found.append(run(tmp_path, *options, f"+model.file={tmp_path}/weights.pt")[0]["test_loss"])
    assert found[0] == found[2] != found[1]


def test_a_checkpoint_that_a_library_reads_counts(tmp_path):
    """Of a model of ours, which hands its path on."""
    timm = pytest.importorskip("timm")
    model = {"_target_": "experiments.models.timm_model", "name": "test_resnet", "shape": [1, 32, 32], "outputs": 10}
    config = replace(configured(), model=model | {"checkpoint_path": str(tmp_path / "weights.pt")})
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet", num_classes=10, in_chans=1).state_dict(), tmp_path / "weights.pt")
        found.append(stages.initial(Setting(config, Store(tmp_path))).key)
    assert found[0] != found[1]


def test_the_identity_of_a_stage_does_not_replace_that_of_its_fields(tmp_path):
    view = Setting(configured(), Store(tmp_path)).only("seed")
    with pytest.raises(ValueError, match="seed would stand for two things"):
        view.obtain("things", {"seed": 1}, lambda folder: None)


def test_data_that_have_changed_train_another_network(tmp_path, monkeypatch):
    """A file that keeps its name."""
    name = own(
        tmp_path,
        monkeypatch,
        "import torch\nfrom experiments.data import split\ndef read(file):\n    return split(torch.load(file))\n",
    )
    options = ("density=0.5", "recovery.epochs=0", "~data.load.validation", "~data.load.seed")
    options += (f"data.load._target_={name}.read", f"+data.load.file={tmp_path}/data.pt")
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        torch.save({"inputs": torch.randn(300, 1, 8, 8), "targets": torch.arange(300) % 10}, tmp_path / "data.pt")
        found.append(run(tmp_path, *options)[0]["network"])
    assert found[0] == found[2] != found[1]
