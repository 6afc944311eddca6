"""Trackers hold what rows hold, and one that fails or hangs costs nothing."""

import json
import logging
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments import run as app
from experiments.results.tracked import results
from experiments.store.networks import MASKS
from experiments.tracking import Guarded, Wandb
from experiments.tracking.base import numbers
from experiments.tracking.wandb import tags
from pruning import Masks
from pruning.errors import ConfigurationError
from tests.commands import command
from tests.experiments.running import configured, setting_of

wandb = pytest.importorskip("wandb")
wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")


def expected(rows: list[dict]) -> dict[int, dict[str, float]]:
    """Level -> key -> number, controls under their names."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["level"], {}).update(numbers({key: row[key] for key in row if key != "format"}))
    return found


def records(path: Path) -> Iterator[bytes]:
    """The records of a file of wandb's: LevelDB's log format, in blocks of 32 KiB, after a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little for a header: the block is padded
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def offline(folder: Path) -> tuple[list[dict], dict, Any, set[str]]:
    """Steps, configuration, run and artifact files of the one wandb run in `folder`, out of its own file."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    steps, config, run, files = [], {}, None, set()
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            step = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            steps.append(step | {"_step": record.history.step.num})
        elif kind == "run":
            run = record.run
            config |= {update.key: json.loads(update.value_json) for update in record.run.config.update}
        artifact = record.request.log_artifact.artifact if kind == "request" else record.artifact
        files |= {entry.path for entry in artifact.manifest.contents}
    return steps, config, run, files


def test_an_offline_wandb_run_holds_the_rows(tmp_path):
    overrides = (
        "tracker=wandb",
        "tracker.mode=offline",
        f"folder={tmp_path}",
        "density=[0.5,0.1]",
        "controls=[reinit]",
    )
    setting = setting_of(tmp_path, *overrides, "name=group")
    rows = app.run(setting, tmp_path / "run", "a-run")
    deadline = time.monotonic() + 20  # wandb's own process may still be writing when `finish` has returned
    while not offline(tmp_path)[3] and time.monotonic() < deadline:
        time.sleep(0.2)
    steps, config, run, files = offline(tmp_path)
    found: dict[int, dict] = {}
    for step in steps:
        found.setdefault(step["_step"], {}).update(step)
    for level, values in expected(rows).items():
        for name, value in values.items():
            assert found[level][name] == pytest.approx(value), (level, name)
    assert "reinit/test_accuracy" in found[1]
    assert config["training"] == setting.config.as_dict()["training"]
    assert (run.run_group, run.display_name) == ("group", "a-run")
    assert list(run.tags) == ["magnitude", "mlp", "Weights", "digits", "trained"]
    assert found[2]["accuracy/_type"] == "image-file"
    assert files == {f"level{n}{of}.safetensors" for n in (1, 2) for of in ("", "-reinit")}


def test_tensorboard_holds_the_rows(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    overrides = ("tracker=tensorboard", f"folder={tmp_path}", "density=[0.5,0.1]", "controls=[reinit]")
    rows = app.run(setting_of(tmp_path, *overrides), tmp_path / "run", "a-run")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "a-run"))
    events.Reload()
    for level, values in expected(rows).items():
        for name, value in values.items():
            at = {event.step: event.value for event in events.Scalars(name)}
            assert at[level] == pytest.approx(value, rel=1e-6), (level, name)
    assert events.Tags()["images"] == ["accuracy"]


class Listener:
    def __init__(self):
        self.calls = []

    def start(self, run, config):
        self.calls.append("start")

    def row(self, row):
        self.calls.append(row["level"])

    def results(self, figures, masks):
        self.calls.append((sorted(figures), sorted(masks)))
        self.masks = {name: Masks.load(path) for name, path in masks.items()}

    def finish(self, done):
        self.calls.append("done" if done else "failed")


def test_a_tracker_is_told_everything_in_order(tmp_path, monkeypatch):
    listener = Listener()
    monkeypatch.setattr(app, "Guarded", lambda _: Guarded(listener))
    rows = app.run(setting_of(tmp_path, "density=[0.5,0.1]"), tmp_path / "run", "a-run")
    assert listener.calls == ["start", 0, 1, 2, (["accuracy"], ["level1", "level2"]), "done"]
    assert [listener.masks[f"level{row['level']}"].kept for row in rows[1:]] == [row["kept"] for row in rows[1:]]
    assert len(list((tmp_path / "store" / "masks").glob(f"*/{MASKS}"))) == 2


@pytest.mark.parametrize("method", ["start", "row", "results", "finish"])
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_tracker_that_fails_or_hangs_costs_no_result(tmp_path, monkeypatch, caplog, method, how):
    class Broken(Listener):
        pass

    def broken(self, *_):
        if how == "hangs":
            time.sleep(30)
        raise ConnectionError("no network")

    setattr(Broken, method, broken)
    tracker = Broken()
    monkeypatch.setattr(app, "Guarded", lambda _: Guarded(tracker, patience=0.3, farewell=0.3))
    caplog.set_level(logging.WARNING, logger="experiments")
    began = time.monotonic()
    rows = app.run(setting_of(tmp_path, "density=0.5"), tmp_path / "run", "a-run")
    assert len(rows) == 2
    assert time.monotonic() - began < 20
    (told,) = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert f"tracker Broken dropped at {method}: " in told
    assert ("nothing for 0.3 s" if how == "hangs" else "ConnectionError: no network") in told
    after = {"start": [], "row": ["start"], "results": ["start", 0, 1]}
    if method != "finish":  # it is not asked again; one that answers may close what it has open
        assert tracker.calls == after[method] + (["failed"] if how == "fails" and method != "start" else [])


HANGING = """
import sys, threading, time
from experiments import tracking

class Hanging(tracking.Nothing):
    def row(self, row):
        threading.Event().wait()

tracker = tracking.Guarded(type("Client", (), dict(vars(Hanging)))(), patience=0.2)
import atexit
atexit.register(threading.Event().wait)  # as a client does that waits for its own process
tracker.row({})
tracking.leave(3)
"""


def test_a_tracker_that_hangs_does_not_keep_the_process(tmp_path):
    done = command(tmp_path, "-c", HANGING, timeout=60)
    assert done.returncode == 3
    assert "nothing for 0.2 s" in done.stderr


def test_a_tracker_that_writes_into_the_configuration_changes_nothing(tmp_path, monkeypatch):
    class Writing(Listener):
        def start(self, run, config):
            config.clear()

    monkeypatch.setattr(app, "Guarded", lambda _: Guarded(Writing()))
    assert len(app.run(setting_of(tmp_path, "density=0.5"), tmp_path / "run", "a-run")) == 2


def test_a_run_that_fails_is_finished_as_failed(tmp_path, monkeypatch):
    listener = Listener()
    monkeypatch.setattr(app, "Guarded", lambda _: Guarded(listener))
    with pytest.raises(ConfigurationError, match="objective=nothing"):
        app.run(setting_of(tmp_path, "density=0.5", "objective=[nothing]"), tmp_path / "run", "a-run")
    assert listener.calls == ["start", 0, "failed"]  # and it was told before anything was pruned


def test_rows_that_make_no_figure_keep_their_masks(tmp_path):
    setting = setting_of(tmp_path, "density=[0.5,0.1]")
    rows = app.run(setting, tmp_path / "run", "a-run")
    drawn, masks = results([row | {"test_accuracy": math.nan} for row in rows], setting.store.root)
    assert (drawn, sorted(masks)) == ({}, ["level1", "level2"])


def test_nobody_listens_and_no_figure_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "results", lambda *_: pytest.fail("made for nobody"))
    app.run(setting_of(tmp_path, "density=0.5"), tmp_path / "run", "a-run")


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("k" * 40, "online")])
def test_wandb_goes_online_where_somebody_is_logged_in(tmp_path, monkeypatch, key, mode):
    asked = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(wandb, "login", lambda **_: key is not None)
    Wandb(folder=str(tmp_path / "new")).start("a-run", configured().as_dict())
    assert asked["mode"] == mode
    assert (tmp_path / "new").is_dir()
    Wandb(mode="offline").start("a-run", configured().as_dict())
    assert asked["mode"] == "offline"


def test_tags_are_of_any_configuration():
    assert tags({}) == []
    assert tags(configured("scorer=taylor", "when=init").as_dict()) == ["taylor", "mlp", "Weights", "digits", "init"]
