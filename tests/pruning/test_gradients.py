"""No zero stands for a gradient that was not computed: hidden weights are differentiated, or refused by name."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.errors import ParameterError, ScoreError
from pruning.evidence import Scores
from pruning.gradients import mean_gradient
from pruning.sequential import sequentially

BY_GRADIENT: dict[str, Callable[[Evidence], Scores]] = {
    "gradient": scorers.gradient,
    "taylor": scorers.taylor,
    "taylor before": lambda e: scorers.taylor(e, absolute="before"),
    "snip": scorers.snip,
    "movement": scorers.movement,
}
BY_CURVATURE: dict[str, Callable[[Evidence], Scores]] = {
    "fisher": scorers.fisher,
    "obd": scorers.obd,
    "hutchinson": lambda e: scorers.obd(e, curvature="hutchinson", probes=2),
    "woodfisher": scorers.woodfisher,
    "grasp": scorers.grasp,
}


class Checkpointed(nn.Module):
    """Its first layer runs in a checkpoint, with another `before` it, or `again` behind; `aside` is used by nobody."""

    def __init__(self, reentrant: bool, where: str = "first") -> None:
        super().__init__()
        self.a, self.b, self.aside, self.reentrant = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(2, 2), reentrant
        self.before = nn.Linear(5, 5) if where == "before" else None
        self.again = where == "again"

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_() if self.before is None else self.before(x)
        hidden = checkpoint(lambda z: self.a(z).relu(), x, use_reentrant=self.reentrant)
        if self.again:
            hidden = hidden + self.a(x)
        return self.b(hidden)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def case(model: nn.Module, features: int = 5, **options: Any) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, features, generator=generator), torch.randint(3, (6,), generator=generator)
    return Evidence(model, prunable(model, **options), [(x[:4], y[:4]), (x[4:], y[4:])], loss)


def checkpointed(reentrant: bool, where: str = "first") -> Evidence:
    torch.manual_seed(0)
    return case(Checkpointed(reentrant, where))


@pytest.mark.parametrize("where", ["first", "before", "again"])
@pytest.mark.parametrize("scorer", BY_GRADIENT)
def test_reentrant_checkpoints_change_no_score(scorer: str, where: str) -> None:
    hidden, plain = (BY_GRADIENT[scorer](checkpointed(reentrant, where)) for reentrant in (True, False))
    assert bool(hidden["a.weight"].any())
    for name, score in plain.items():
        torch.testing.assert_close(hidden[name], score)
    assert not bool(hidden["aside.weight"].any())  # this zero was computed: the loss does not depend on it


def test_backward_passes_leave_no_trace() -> None:
    evidence = checkpointed(True)
    inputs = next(iter(evidence.batches))[0].requires_grad_()
    inputs.grad = torch.ones_like(inputs)
    mean_gradient(evidence)
    assert torch.equal(inputs.grad, torch.ones_like(inputs))
    assert all(p.grad is None for p in evidence.model.parameters())


def test_backward_passes_run_no_hooks_and_reach_no_others() -> None:
    """Masks that hold on the network do not hide removed weights from a scorer; optimizers in hooks do not step; what
    the loss closes over keeps its gradient."""
    evidence = checkpointed(True)
    wanted = scorers.gradient(evidence)
    teacher = nn.Linear(5, 3)

    def taught(model: nn.Module, batch: Any) -> Tensor:
        return loss(model, batch) + 0 * teacher(batch[0]).sum()

    masks = prune(wanted, 0.3)
    with masks.attach(evidence.model):
        masked = {name: p.detach().clone() for name, p in evidence.parameters.items()}
        stepped = []
        hook = evidence.model.b.weight.register_post_accumulate_grad_hook(stepped.append)
        found = scorers.gradient(Evidence(evidence.model, evidence.parameters, evidence.batches, taught))
        plain = copy.deepcopy(evidence.model)
        hook.remove()
        assert not stepped
        assert all(torch.equal(p, masked[name]) for name, p in evidence.parameters.items())
        loss(evidence.model, next(iter(evidence.batches))).backward()  # hooks are back
        assert not bool(evidence.model.a.weight.grad[~masks["a.weight"]].any())
    assert teacher.weight.grad is None
    plain.reentrant = False
    for p in plain.parameters():
        p.grad = None
    twin = scorers.gradient(Evidence(plain, prunable(plain), evidence.batches, loss))
    assert bool(found["a.weight"][~masks["a.weight"]].any())
    for name, score in twin.items():
        torch.testing.assert_close(found[name], score)


@pytest.mark.parametrize("where", ["first", "before", "again"])
@pytest.mark.parametrize("scorer", [*BY_CURVATURE, "synflow"])
def test_curvature_under_reentrant_checkpoints_is_refused(scorer: str, where: str) -> None:
    score = BY_CURVATURE.get(scorer, scorers.synflow)
    with pytest.raises(ScoreError, match="use_reentrant=False") as caught:
        score(checkpointed(True, where))
    assert "\n" not in str(caught.value)
    found = score(checkpointed(False, where))
    assert bool(found["a.weight"].any())


def test_synflow_through_a_checkpoint_is_that_without() -> None:
    """The checkpoint runs its layer again when the gradient is taken: with the same absolute weights."""
    evidence = checkpointed(False)
    plain = nn.Sequential(evidence.model.a, nn.ReLU(), evidence.model.b).double()
    x = torch.ones(1, 5).double()
    twin = scorers.synflow(Evidence(plain, prunable(plain), [x]))
    evidence.model.double()
    found = scorers.synflow(Evidence(evidence.model, prunable(evidence.model), [x]))
    assert torch.equal(found["a.weight"], twin["0.weight"])


class Reading(nn.Module):
    """Reads its second weight outside of autograd, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(5, 3), nn.Linear(5, 3), how

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        with torch.no_grad():
            beside = self.b(x) if self.how == "no_grad" else torch.zeros(())
            rows = self.b.weight.T.shape[0]  # looks at it, but at no value
        if self.how == "detach":
            beside = F.linear(x, self.b.weight.detach())
        elif self.how == "output":
            beside = self.b(x).detach()
        elif self.how == "number":
            beside = torch.tensor(self.b(x).mean().item())
        elif self.how == "view":
            beside = x @ self.b.weight.data.T
        elif self.how == "shape":
            beside = torch.tensor(float(rows))
        elif self.how == "stopped":  # in the graph, but the loss does not depend on what comes out
            self.b(x)
        return out + beside


@pytest.mark.parametrize("how", ["no_grad", "detach", "view", "output", "number"])
@pytest.mark.parametrize("scorer", {**BY_GRADIENT, **BY_CURVATURE})
def test_a_weight_read_outside_of_autograd_is_refused(how: str, scorer: str) -> None:
    with pytest.raises(
        ScoreError, match=r"b\.(weight|bias): the loss reads it where autograd does not record"
    ) as caught:
        (BY_GRADIENT | BY_CURVATURE)[scorer](case(Reading(how)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["none", "shape", "stopped"])
def test_a_weight_that_the_loss_does_not_depend_on_has_gradient_zero(how: str) -> None:
    for score in (mean_gradient, *BY_CURVATURE.values()):
        found = score(case(Reading(how)))
        assert bool(found["a.weight"].any())
        assert not bool(found["b.weight"].any())


def test_a_weight_that_is_also_read_beside_the_graph_keeps_its_gradient() -> None:
    """A target that a model gives itself, without a gradient, as SimSiam and BYOL do."""

    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.a(x)
            return self.a(x) * target

    evidence = case(Stopped())
    found = mean_gradient(evidence)["a.weight"]
    total = sum(loss(evidence.model, batch) * len(batch[1]) for batch in evidence.batches) / 6
    torch.testing.assert_close(found, torch.autograd.grad(total, evidence.model.a.weight)[0])


class Later(nn.Module):
    """Its second layer takes part in passes of few examples alone."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.a, self.b, self.hidden = nn.Linear(5, 3), nn.Linear(5, 3), hidden

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        if len(x) > 3:
            return out
        with torch.set_grad_enabled(not self.hidden):
            more = self.b(x)
        return out + more


def test_what_is_reached_in_later_batches_alone_is_found_there() -> None:
    evidence = case(Later(hidden=False))
    (x, y), (last_x, last_y) = evidence.batches
    found = mean_gradient(evidence)
    total = (loss(evidence.model, (x, y)) * 4 + loss(evidence.model, (last_x, last_y)) * 2) / 6
    for (name, p), gradient in zip(evidence.parameters.items(), found.values(), strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(total, p, retain_graph=True)[0], msg=name)
    with pytest.raises(ScoreError, match=r"b\.weight: the loss reads it where autograd"):
        mean_gradient(case(Later(hidden=True)))


def test_sparse_gradients_of_embeddings_are_scores_too() -> None:
    class Words(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids).mean(1))

    ids, targets = torch.randint(7, (6, 3)), torch.randint(3, (6,))
    for scorer in (scorers.taylor, scorers.gradient, scorers.snip, scorers.movement):
        sparse, dense = (
            scorer(Evidence(m, prunable(m, include="*.weight"), [(ids, targets)], loss))
            for m in (Words(True), Words(False))
        )
        for name, score in dense.items():
            torch.testing.assert_close(sparse[name], score)


def test_complex_weights_are_scored_by_their_effect_or_refused() -> None:
    """Re(ḡ·w) is minus the change of the loss when a complex weight goes, to first order: by a difference quotient."""

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix = nn.Parameter(torch.randn(3, 5, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(self.mix.dtype) @ self.mix.T).abs()

    model = Waves()
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randint(3, (4,))
    evidence = Evidence(model, prunable(model, include="mix"), [(x, y)], loss)
    before, step = loss(model, (x, y)), 1e-7
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(5):
            with torch.no_grad():
                weight = model.mix[i, j].clone()
                model.mix[i, j] = weight * (1 - step)
                wanted[i, j] = (loss(model, (x, y)) - before).detach() / step
                model.mix[i, j] = weight
    torch.testing.assert_close(scorers.taylor(evidence)["mix"], wanted.abs(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scorers.taylor(evidence, form="signed")["mix"], wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scorers.snip(evidence)["mix"], wanted.abs() / wanted.abs().sum(), rtol=1e-4, atol=1e-6)
    assert scorers.gradient(evidence)["mix"].dtype == torch.float64
    assert prune(scorers.gradient(evidence), 0.4).kept == 6
    for scorer in (*BY_CURVATURE.values(), scorers.synflow):
        with pytest.raises(ScoreError, match="mix: is complex"):
            scorer(evidence)


def test_grasp_of_a_compiled_model_is_that_of_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    plain = scorers.grasp(case(model))
    compiled = torch.compile(model, backend="aot_eager")
    for name, score in scorers.grasp(case(compiled)).items():  # a module, to us
        torch.testing.assert_close(score, plain[name])


def test_weights_without_values_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    model[1].to("meta")
    with pytest.raises(ParameterError, match=r"1\.weight: is on the meta device"):
        case(model)
    with pytest.raises(ScoreError, match=r"1\.weight: the score is on the meta device"):
        prune({name: p.detach() for name, p in prunable(model).items()}, 0.5)


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_an_offloaded_model_is_refused_by_name(offload: str, tmp_path: Path) -> None:
    """accelerate leaves its weights on the meta device between passes, block by block too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    places = {"offload_dir": str(tmp_path)} if offload == "disk_offload" else {}
    getattr(accelerate, offload)(model, execution_device="cpu", **places)
    with pytest.raises(ParameterError, match=r"0\.weight: is on the meta device, .* \(offloaded"):
        Evidence(model, prunable(model))
    with pytest.raises(ParameterError, match="is on the meta device"):
        sequentially(model, [torch.randn(2, 4)], scorers.magnitude, names=["0", "1"])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "group"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrap", ["FSDP", "fully_shard"])
def test_sharded_weights_are_refused(wrap: str) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    masks = Masks.dense(prunable(model))
    if wrap == "FSDP":
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(ParameterError, match="is sharded"):
        Evidence(model, dict(model.named_parameters()))
    with pytest.raises(ParameterError, match="is sharded"):
        masks.attach(model)


def cast(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch[0])
    return F.cross_entropy(outputs.float(), batch[1])


@pytest.mark.parametrize("scorer", {**BY_GRADIENT, **BY_CURVATURE})
def test_casts_that_autocast_keeps_hide_no_weight(scorer: str) -> None:
    class Used(Reading):
        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.b(x) * 0
            return super().forward(x) + first.detach()

    evidence = case(Used("no_grad"))
    with pytest.raises(ScoreError, match=r"b\.(weight|bias): the loss reads it where autograd"):
        (BY_GRADIENT | BY_CURVATURE)[scorer](Evidence(evidence.model, evidence.parameters, evidence.batches, cast))


def test_reentrant_checkpoints_under_autocast_and_in_later_batches_change_no_score() -> None:
    class Late(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            self.reentrant = self.later and len(x) == 2
            return super().forward(x)

    for given in (loss, cast):
        found = []
        for later in (True, False):
            torch.manual_seed(0)
            model = Late(False, "before")
            model.later = later  # a plain attribute
            evidence = case(model)
            found.append(scorers.taylor(Evidence(model, evidence.parameters, evidence.batches, given)))
        for name, score in found[1].items():
            torch.testing.assert_close(found[0][name], score, rtol=2e-2 if given is cast else 1e-5, atol=1e-4)


class Once(torch.autograd.Function):
    """tanh, of which the gradient has no gradient, as in many kernels of others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # torch leaves it open
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # torch leaves it open
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


@pytest.mark.parametrize("scorer", ["grasp", "hutchinson"])
def test_operators_that_are_differentiable_once_have_no_hessian(scorer: str) -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Once.apply(self.a(x)))

    with pytest.raises(ScoreError, match="can be differentiated once alone"):
        BY_CURVATURE[scorer](case(Kernel()))
    assert bool(scorers.taylor(case(Kernel()))["a.weight"].any())


def test_weights_are_looked_at_without_running_their_parametrizations() -> None:
    """In train mode each access of a spectrally normalised weight moves its vectors."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 6)
            self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
            self.aside = nn.utils.parametrizations.spectral_norm(nn.ConvTranspose1d(1, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Normalised().train()
    before = copy.deepcopy(model.state_dict())
    evidence = case(model, include="a.weight")
    for scorer in (scorers.magnitude, scorers.wanda, scorers.obs, scorers.taylor):
        scorer(evidence)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_distributed_part_of_a_model_is_refused(one_process: None) -> None:
    whole = nn.Sequential(nn.Linear(5, 4), nn.parallel.DistributedDataParallel(nn.Linear(4, 3)))
    with pytest.raises(ParameterError, match="1: is a DistributedDataParallel inside of the model"):
        Evidence(whole, prunable(whole))
    with pytest.raises(ParameterError, match="wrap the whole model"):
        Masks.dense(prunable(whole)).attach(whole)


def test_backward_passes_of_a_distributed_model_are_refused(one_process: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(Checkpointed(True))
    with pytest.raises(ScoreError, match="DistributedDataParallel would take part"):
        scorers.gradient(case(wrapped))
    plain = nn.parallel.DistributedDataParallel(Checkpointed(False))
    assert bool(scorers.gradient(case(plain))["a.weight"].any())
