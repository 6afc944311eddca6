"""Commands in processes of their own that need not import the libraries: forked from one that has, and has nothing of
ours.

A fork is a new interpreter for all that the tests look at: own modules, folder, arguments, environment, streams, exit.
What it shares with the others is the seed of hashes; test_torchrun and test_launchers start processes from nothing.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNNING = ("hydra", "torch", "torch._dynamo", "accelerate", "torchmetrics", "sklearn.datasets", "scipy.stats", "pandas")
DRAWING = ("matplotlib.pyplot", "plotly", "rich.console", "jinja2")
LIBRARIES = (*RUNNING, *DRAWING)


def command(
    folder: Path, *words: str, path: Path = ROOT, libraries: tuple[str, ...] = LIBRARIES, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in `folder`, of the code below `path`, with `libraries` imported before it begins."""
    with tempfile.TemporaryDirectory() as place:
        streams = {name: str(Path(place) / name) for name in ("stdout", "stderr")}
        environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        server = _server(libraries)
        assert server.stdin
        assert server.stdout
        asked = {"words": words, "folder": str(folder), "environment": environment, **streams}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        late = not select.select([server.stdout], [], [], timeout)[0]
        if late:
            os.kill(process, signal.SIGKILL)
        code = int(server.stdout.readline())
        found = [Path(name).read_text() for name in streams.values()]
        if late:
            raise subprocess.TimeoutExpired(words, timeout, *found)
        return subprocess.CompletedProcess(words, code, *found)


@cache
def _server(libraries: tuple[str, ...]) -> subprocess.Popen[str]:
    """The process that others are forked from; it ends when its input does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, *libraries]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _serve() -> list[str]:
    """Fork a process for every line of the input, and print its number and, when it has ended, its exit code. Returns
    in the forked processes, with the words of their command.
    """
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if not process:
            return _become(**asked)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    sys.exit()


def _become(words: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> list[str]:
    """Folder, environment, streams and path of a command."""
    import numpy as np  # noqa: PLC0415  # a test of this module's functions needs none

    np.random.seed()  # the generators of random and of torch begin as in any process
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, (place, mode) in enumerate(((os.devnull, os.O_RDONLY), (stdout, os.O_WRONLY), (stderr, os.O_WRONLY))):
        os.dup2(os.open(place, mode | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # what was read ahead is the server's
    first = str(Path(words[0]).parent) if words[0] not in ("-m", "-c") else folder
    sys.path[:1] = [first, *environment["PYTHONPATH"].split(os.pathsep)]
    return words


def _run(words: list[str]) -> int:
    """The exit code of `python WORDS`, after what was registered for its end."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # as the interpreter itself
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        importlib.import_module(_name)
    assert not {"pruning", "experiments", "tests"} & set(sys.modules)
    gc.freeze()
    os._exit(_run(_serve()))  # an interpreter that takes all libraries apart needs seconds for it
