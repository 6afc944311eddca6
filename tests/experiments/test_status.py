"""States of runs: what happened, seen from outside, also where the process was killed."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.records import runs as state
from experiments.records.runs import FILE, LOCK, record_state, states
from experiments.status import main
from pruning.errors import PruningError

CONTEXT = multiprocessing.get_context("fork")


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name


def held(folder: Path) -> multiprocessing.process.BaseProcess:
    """A process that is at the run of `folder`."""
    begun = CONTEXT.Event()

    def hold() -> None:
        with record_state(folder, "python -m experiments.run seed=3"):
            begun.set()
            time.sleep(60)

    process = CONTEXT.Process(target=hold)
    process.start()
    assert begun.wait(60)
    return process


def test_done_failed_running_and_cut(tmp_path, capsys):
    with record_state(made(tmp_path, "a"), "python -m experiments.run seed=1"):
        (tmp_path / "a" / "rows.jsonl").write_text("{}\n{}\n")
        assert json.loads((tmp_path / "a" / FILE).read_text())["state"] == "running"
    with pytest.raises(PruningError), record_state(made(tmp_path, "b"), "python -m experiments.run 'density=[0.5]'"):
        raise PruningError("weights: too\nmany")
    process = held(made(tmp_path, "deep/c"))
    try:
        found = {one.run: one for one in states(tmp_path)}
        assert {name: one.state for name, one in found.items()} == {"a": "done", "b": "failed", "c": "running"}
        assert found["c"].process == process.pid
    finally:
        process.kill()
        process.join()
    found = {one.run: one for one in states(tmp_path)}
    assert found["c"].state == "cut"
    assert (found["b"].reason, found["a"].rows, found["b"].rows) == ("weights: too many", 2, 0)
    assert found["a"].ended >= found["a"].began
    assert found["c"].ended is None

    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 done, 1 cut, 1 failed" in text
    assert "b: weights: too many\n    python -m experiments.run 'density=[0.5]'\n" in text
    assert "c: its process ended without a word\n    python -m experiments.run seed=3\n" in text
    assert main([str(tmp_path), "--commands"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "python -m experiments.run 'density=[0.5]'",
        "python -m experiments.run seed=3",
    ]


def test_an_interrupted_run_is_cut(tmp_path):
    with pytest.raises(KeyboardInterrupt), record_state(tmp_path, "again"):
        raise KeyboardInterrupt
    assert [(found.state, found.reason) for found in states(tmp_path)] == [("cut", "it was interrupted")]


def test_a_repetition_forgets_the_failure(tmp_path):
    with pytest.raises(ValueError, match="x"), record_state(tmp_path, "again"):
        raise ValueError("x")
    with record_state(tmp_path, "again"):
        pass
    (found,) = states(tmp_path)
    assert (found.state, found.reason) == ("done", None)


def test_another_process_at_the_same_run_is_waited_for(tmp_path, caplog):
    caplog.set_level("INFO", logger="experiments")
    process = held(tmp_path)
    threading.Timer(1.5, process.kill).start()
    began = time.monotonic()
    with record_state(tmp_path, "mine"):
        assert time.monotonic() - began > 1.2
        assert states(tmp_path)[0].state == "running"
    process.join()
    assert "waiting for another process" in caplog.text


def test_a_run_that_ends_between_two_looks_is_not_cut(tmp_path, monkeypatch):
    lock, written = state._held, state._write
    with record_state(tmp_path, "mine"):
        running = states(tmp_path)[0]

    def ending(path):  # it said "running" when it was read, and ends before its lock is looked at
        written(tmp_path, done)
        return lock(path)

    done = states(tmp_path)[0]
    written(tmp_path, running)
    monkeypatch.setattr(state, "_held", ending)
    assert [found.state for found in states(tmp_path)] == ["done"]


def test_what_cannot_be_looked_at_is_told_as_it_was_written(tmp_path, monkeypatch):
    with record_state(tmp_path, "mine"):
        running = states(tmp_path)[0]
    state._write(tmp_path, running)

    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refused)
    assert [found.state for found in states(tmp_path)] == ["running"]


def test_a_disk_that_fills_up_at_the_end_does_not_undo_a_run(tmp_path, monkeypatch, caplog):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    with record_state(tmp_path, "mine"):
        monkeypatch.setattr(Path, "write_text", full)
    assert "No space left" in caplog.text


def test_looking_does_not_disturb(tmp_path):
    with record_state(tmp_path, "mine"):
        before = sorted(path.name for path in tmp_path.iterdir())
        states(tmp_path)
        states(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert states(tmp_path)[0].state == "running"


def test_where_nothing_can_be_written_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with record_state(tmp_path, "mine"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_why_a_run_failed(tmp_path, monkeypatch, caplog):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    def run():
        with record_state(tmp_path, "mine"):
            monkeypatch.setattr(Path, "write_text", full)
            raise PruningError("the reason")

    with pytest.raises(PruningError, match="the reason"):
        run()
    assert "No space left" in caplog.text


WHOLE = {"run": "a", "state": "done", "command": "c", "reason": None, "began": 1.0, "ended": 2.0}
WHOLE |= {"host": "h", "process": 1, "hardware": ""}
WRONG = [{"state": "paused"}, {"began": "yesterday"}, {"began": 1e30}, {"reason": 5}, {"run": None}, {"began": -1.0}]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"run": "a"}', '{"run": "a", "state": "running", "more": 1}'),
        *(json.dumps(WHOLE | wrong) for wrong in WRONG),
    ],
)
def test_a_damaged_state_is_named(tmp_path, capsys, text):
    (tmp_path / FILE).write_text(text)
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / FILE}: is no state of a run")
    assert error.count("\n") == 1


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / LOCK).exists()
