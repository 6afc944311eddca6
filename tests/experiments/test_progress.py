"""How far long work is: what it says, and how often."""

import logging

from experiments.runtime import progress
from experiments.runtime.progress import Lines
from tests.experiments.running import run


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_log_line_every_twenty_seconds_with_the_time_left(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    caplog.set_level(logging.INFO, "experiments")
    lines = Lines("magnitude, seed 3, round 2 of 6")
    for epoch in range(1, 101):
        clock.now += 6.0
        lines.epoch(epoch, 100, 0.25)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "magnitude, seed 3, round 2 of 6: epoch 4 of 100, loss 0.2500, 0:09:36 left"
    assert len(said) == 25
    assert said[-1].endswith("epoch 100 of 100, loss 0.2500, 0:00:00 left")


def test_the_epochs_of_an_earlier_process_do_not_count(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    caplog.set_level(logging.INFO, "experiments")
    lines = Lines("resumed")
    for epoch in (50, 51, 52):  # the first of these was cut: its seconds tell nothing
        clock.now += 30.0
        lines.epoch(epoch, 60, 1.0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "resumed: epoch 50 of 60, loss 1.0000",
        "resumed: epoch 51 of 60, loss 1.0000, 0:04:30 left",
        "resumed: epoch 52 of 60, loss 1.0000, 0:04:00 left",
    ]


def test_every_training_says_which_round_it_is(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("experiments.running.basis.progress", lambda title, alone: titles.append(title))
    run(tmp_path, "schedule=linear", "schedule.rounds=3", "density=0.4", "controls=[reinit]")
    assert titles == [
        "magnitude, seed 0, dense",
        "magnitude, seed 0, round 1 of 3, density 0.8",
        "magnitude, seed 0, round 1 of 3, density 0.8, reinit",
        "magnitude, seed 0, round 2 of 3, density 0.6",
        "magnitude, seed 0, round 2 of 3, density 0.6, reinit",
        "magnitude, seed 0, round 3 of 3, density 0.4",
        "magnitude, seed 0, round 3 of 3, density 0.4, reinit",
    ]
