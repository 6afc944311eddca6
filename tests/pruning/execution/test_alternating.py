"""Regimes that change masks, trained in sparse form between their changes: the same masks, weights and counts."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import Evidence, Masks, prunable, prune, scorers
from pruning.allocation import ERK
from pruning.dynamic import SET, AutoPruner, FixedMasks, Gradual, Movement, Regime, RigL, SoftMask
from pruning.errors import ExecutionError
from pruning.execution import Execution, dense_execution, masked, sparse, sparse_layers
from pruning.structure import Channels, trace

STEPS = 60


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)).double()


def batches(count: int = STEPS, begin: int = 0):
    for number in range(begin, begin + count):
        g = torch.Generator().manual_seed(number)
        yield torch.randn(16, 10, generator=g, dtype=torch.float64), torch.randint(4, (16,), generator=g)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def regime_of(name: str, model: nn.Module, optimizer) -> Regime:
    evidence = Evidence(model, prunable(model), list(batches(2)), loss)
    start = prune(scorers.random(evidence), 0.3, allocation=ERK())
    sparse_evidence = Evidence(model, prunable(model), list(batches(2)), loss, masks=start)
    made = {
        "held": lambda: FixedMasks(model, optimizer, start),
        "rigl": lambda: RigL(sparse_evidence, optimizer, steps=STEPS, every=7),
        "set": lambda: SET(sparse_evidence, optimizer, steps=STEPS, every=7),
        "gradual": lambda: Gradual(
            evidence, optimizer, steps=STEPS, density=0.1, scorer=scorers.magnitude, every=5, end=0.6
        ),
        "regrowing": lambda: Gradual(
            evidence, optimizer, steps=STEPS, density=0.1, scorer=scorers.magnitude, every=5, end=0.6, regrow=True
        ),
        "movement": lambda: Movement(evidence, optimizer, steps=STEPS, density=0.2, end=0.5),
        "soft": lambda: SoftMask(evidence, optimizer, steps=STEPS, density=0.2, end=0.5),
        "codes": lambda: AutoPruner(
            *(evidence, optimizer),
            steps=STEPS,
            density=0.3,
            granularity=Channels(trace(model, evidence.batches[0][0])),
            end=0.5,
        ),
    }
    return made[name]()


NAMES = ("held", "rigl", "set", "gradual", "regrowing", "movement", "soft", "codes")


def trained(name: str, choose, make=lambda p: torch.optim.Adam(p, lr=1e-2)) -> tuple[nn.Module, Masks, list[int]]:
    model = network()
    optimizer = make(model.parameters())
    regime = regime_of(name, model, optimizer)
    execution = Execution(regime, choose, next(batches(1))[0])
    sparsely = []
    for batch in batches():
        execution.ready()
        sparsely.append(len(sparse_layers(model)))
        optimizer.zero_grad()
        loss(model, batch).backward()
        regime.before_step()
        optimizer.step()
        regime.after_step()
    execution.dense()
    return model, regime.finish(), sparsely


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.Adam(p, lr=1e-2), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)]
)
def test_the_form_changes_neither_masks_nor_weights(name, make):
    one, masks, dense = trained(name, masked, make)
    other, found, sparsely = trained(name, sparse, make)
    assert found == masks
    assert found.agree(other)
    for (key, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9), key
    assert dense == [0] * STEPS
    expected = {
        "held": 60,
        "rigl": 60 - 6,  # exchanges after 7, 14, … 42 of 45 steps
        "set": 60 - 6,
        "gradual": 60 - 8,  # prunings after 0, 5, … 36 steps; none changes at step 0
        "regrowing": 60 - 8,
        "movement": 30,
        "soft": 30,
        "codes": 30,
    }
    assert sparsely.count(3) == expected[name]
    assert sparsely.count(0) == STEPS - expected[name]


def test_an_optimizer_that_mixes_entries_stays_masked_and_says_so_once(caplog):
    _, masks, sparsely = trained("held", sparse, torch.optim.Adafactor)
    assert sparsely == [0] * STEPS
    assert masks.density == pytest.approx(0.3, abs=0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "masked execution: Adafactor: is not known to treat every weight by itself: set execution=masked, or take Adam "
        "or SGD of torch.optim"
    ]


def test_a_choice_of_no_layers_is_asked_for_once_a_mask():
    asked = []

    def none(model, masks, inputs):
        asked.append(masks)
        return ()

    trained("rigl", none)
    assert len(asked) == len({id(masks) for masks in asked}) == 6  # the last of six exchanges exchanges nothing


def with_csr(model, masks, inputs):
    """As if MKL's products had been measured to be the faster ones on such batches."""
    return dict.fromkeys(sparse(model, masks, inputs), len(inputs))


@pytest.mark.parametrize("name", ["held", "rigl", "gradual"])
@pytest.mark.parametrize("choose", [sparse, with_csr])
def test_a_training_goes_on_from_its_state_in_either_form(name, choose):
    """What a checkpoint holds: the model's and the optimizer's state, the regime's, and which layers ran sparsely."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    regime = regime_of(name, model, optimizer)
    execution = Execution(regime, choose, next(batches(1))[0])

    def go_on(model, optimizer, regime, execution, begin, end):
        for batch in batches(end - begin, begin):
            execution.ready()
            optimizer.zero_grad()
            loss(model, batch).backward()
            regime.before_step()
            optimizer.step()
            regime.after_step()

    for cut in (13, 14, 15, 40):
        begin = regime.step
        go_on(model, optimizer, regime, execution, begin, cut)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), regime.state_dict(), execution.layers))
        again = network()
        other = torch.optim.Adam(again.parameters(), lr=1e-2)
        resumed = regime_of(name, again, other)
        second = Execution(resumed, choose, next(batches(1))[0])
        resumed.load_state_dict(saved[2])
        if saved[3] is not None:
            second.sparse(saved[3])
            assert second.layers == saved[3]
            assert {value > 0 for value in saved[3].values()} == {choose is with_csr}
        again.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        go_on(again, other, resumed, second, cut, STEPS)
        second.dense()

        whole, whole_optimizer = network(), None
        whole_optimizer = torch.optim.Adam(whole.parameters(), lr=1e-2)
        never_cut = regime_of(name, whole, whole_optimizer)
        third = Execution(never_cut, choose, next(batches(1))[0])
        go_on(whole, whole_optimizer, never_cut, third, 0, STEPS)
        third.dense()
        assert resumed.finish() == never_cut.finish()
        for a, b in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), cut
    dense_execution(model)


class Layouts(nn.Module):
    """Where outputs go that might lie features first: into a view, into noise, out of the model, into a copy."""

    def __init__(self, kind=""):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(10, 24), nn.Linear(24, 12), nn.Linear(12, 4)
        self.kind, self.calls = kind, 0
        self.generator = torch.Generator().manual_seed(0) if kind == "generator" else None

    def forward(self, x):
        x = torch.relu(self.first(x.mul_(2) if self.kind == "writes" else x))
        if self.kind == "view" or (self.kind == "view in eval" and not self.training):
            x = x.view(2 * len(x), 12).view(len(x), 24)
        if self.kind == "dropout":
            x = F.dropout(x, 0.5, self.training)
        if self.kind == "generator":
            x = x * torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
        if self.kind == "counts":
            self.calls += 1
            x = x * self.calls
        return self.third(torch.tanh(self.second(x)))


def loss_with(kind, model, batch):
    out = model(batch[0])
    if kind == "noise in the loss":
        out = F.dropout(out, 0.5)
    if kind == "view in the loss":
        return (out.view(-1) - 1).square().mean()
    return F.cross_entropy(out, batch[1])


@pytest.mark.parametrize(
    ("kind", "free"),
    [
        ("", ["first", "second"]),
        ("view", []),
        ("view in eval", []),
        ("dropout", []),
        ("generator", []),
        ("counts", []),
        ("writes", ["first", "second"]),
        ("noise in the loss", ["first", "second"]),
        ("view in the loss", ["first", "second"]),
    ],
)
@pytest.mark.parametrize("example", [16, 600])
def test_outputs_lie_features_first_where_nothing_minds(kind, free, example):
    ends = []
    for choose in (masked, sparse):
        torch.manual_seed(0)
        model = Layouts(kind).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
        held = FixedMasks(model, optimizer, masks)
        inputs = torch.randn(example, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        execution = Execution(held, choose, inputs)
        for batch in [*batches(6), (torch.randn(5, 10).double(), torch.randint(4, (5,)))]:
            execution.ready()
            optimizer.zero_grad()
            loss_with(kind, model, batch).backward()
            optimizer.step()
        if choose is sparse:
            found = [name for name, layer in model.named_children() if not layer.row_major]
            assert found == (free if example == 16 else [])
        with torch.no_grad():
            model.eval()(inputs)
        execution.dense()
        ends.append(model.first.weight)
    assert torch.allclose(*ends, rtol=1e-7, atol=1e-10)


def test_a_choice_of_what_cannot_run_sparsely_is_refused_and_masks_hold():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = FixedMasks(model, optimizer, prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3))
    for name in ("nope.weight", "0", "0.bias"):
        with pytest.raises(ExecutionError, match=rf"^{name}: is no layer that can run sparsely"):
            Execution(held, lambda *_, name=name: (name,), next(batches(1))[0]).ready()
    loss(model, next(batches(1))).backward()
    optimizer.step()
    assert held.finish().agree(model)


@pytest.mark.parametrize("frozen", ["requires_grad", "optimizer"])
def test_what_stays_dense_may_be_frozen(frozen):
    model = network()
    trained = [p for name, p in model.named_parameters() if name != "2.weight"]
    if frozen == "requires_grad":
        model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model, frozen=True))), 0.3)
    held = FixedMasks(model, optimizer, masks)
    execution = Execution(held, lambda *_: ("0.weight", "4.weight"), next(batches(1))[0])
    before = model[2].weight.detach() * masks["2.weight"]
    for batch in batches(3):
        execution.ready()
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    assert set(sparse_layers(model)) == {"0.weight", "4.weight"}
    execution.dense()
    assert held.finish().agree(model)
    assert torch.equal(model[2].weight, before)


def test_arguments_that_are_something_else_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    held = FixedMasks(model, optimizer, masks)
    with pytest.raises(ExecutionError, match="Masks: is no regime"):
        Execution(masks, sparse, None)
    with pytest.raises(ExecutionError, match="policy='auto': give one of"):
        Execution(held, "auto", None)


def test_a_network_without_a_layer_that_can_says_so_once(caplog):
    caplog.set_level("INFO", "pruning")
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks = prune(scorers.magnitude(Evidence(model, prunable(model))), 0.3)
    execution = Execution(FixedMasks(model, optimizer, masks), sparse, torch.randn(2, 10).bfloat16())
    for _ in range(2):
        execution.ready()
        execution.dense()
    assert [record.getMessage() for record in caplog.records] == [
        "execution: no masked layer is a Linear or 1x1 convolution of float32 or float64 on a CPU"
    ]
