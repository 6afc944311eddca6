"""Digests of code: they change with what code does, wherever it is imported from, and with nothing else."""

import ast
import inspect
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.store import sources, syntax
from pruning.errors import ConfigurationError
from tests.commands import command
from tests.experiments.running import ROOT, forget, own

PLAIN = """
import math

LEVEL = 3


def mine(evidence, power=2):
    if power > LEVEL:
        return {name: weight.abs() ** power for name, weight in evidence.parameters.items()}
    return f"{power!r:>{LEVEL}} {math.pi=} {'a' 'b'}"


class Holder:
    value: int = 1

    def method(self):
        return lambda *given, last=None, **more: (given, last, more)
"""

SAME = '''
"""What this is for."""
import math  # for pi

LEVEL = 3
"""Up to which."""

def mine(
    evidence,
    power = 2,  # or any other
):
    """Scores.

    Higher = keep.
    """
    "a remark"
    if (power > LEVEL):
        return {name: (weight.abs() ** power) for name, weight in evidence.parameters.items()}
    return f'{power!r:>{LEVEL}} {math.pi=} {"a" "b"}'

class Holder:
    """Of a value."""
    value: int = 0x1
    """The value."""

    def method(self):
        return (lambda *given, last=None, **more:
                (given, last, more))
'''


def digest_of(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, name: str = "own_code") -> str:
    own(folder, monkeypatch, code, name)
    (found,) = sources.digests({"_target_": f"{name}.mine"}).values()
    return found


def test_words_and_layout_are_nothing_to_a_digest(tmp_path, monkeypatch):
    assert digest_of(tmp_path, monkeypatch, PLAIN) == digest_of(tmp_path, monkeypatch, SAME)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LEVEL = 3", "LEVEL = 3.0"),
        ("power=2", "power=3"),
        ("power > LEVEL", "power >= LEVEL"),
        (".abs()", ".sign()"),
        ("return {", "yield {"),
        ("!r", "!s"),
        (":>", ":<"),
        ("'a' 'b'", "'a' 'c'"),
        ("value: int = 1", "value: int = True"),
        ("value: int = 1", "value = 1"),
        ("last=None", "last=0"),
        ("last=None", "last"),
        ("*given, ", "given, *, "),
        ("(given, last, more)", "(last, given, more)"),
        ("(given, last, more)", "[given, last, more]"),
        ("import math\n", "import cmath as math\n"),
        ("        return lambda", "        pass\n        return lambda"),
        ("class Holder:", "class Holder(dict):"),
        ("def mine", "@print\ndef mine"),
        ("LEVEL = 3", "LEVEL = '''3'''"),
    ],
)
def test_whatever_a_file_does_counts(tmp_path, monkeypatch, old, new):
    assert old in PLAIN
    assert digest_of(tmp_path, monkeypatch, PLAIN) != digest_of(tmp_path, monkeypatch, PLAIN.replace(old, new, 1))


def test_digests_are_the_same_under_every_version_of_python(tmp_path, monkeypatch):
    """Worked out under 3.10 to 3.13; f-strings, and what later versions added to syntax trees, are the hard parts."""
    code = (
        PLAIN
        + """
@decorated(1, *a, k=0x10, **b)
def other(a, /, b: "B" = 1e3, *c, d, e=..., **f) -> None:
    global g
    try:
        with a as b, (c): pass
    except (ValueError, TypeError) as error:
        raise error from None
    else:
        del a[1:2, ...], b.c
    finally:
        assert (yield), "no" "t" f"{a!r}" f'' f"{b}{c:{d}.{e}f}{{}}\\N{EN DASH}" "\\u00e9\\U0001f9ec"
    match a:
        case {"x": [1, *_], **rest} | B(y=2) if a: return
    return [x async for x in y if x if not x], {**a, "b": b}, {*c}, -1, 1j, b"\\x00", x[a := 1], not a or b and c
"""
    )
    ast.parse(code)
    assert digest_of(tmp_path, monkeypatch, code) == "6b32ad3fb96784af"


# What is reached


def test_what_a_file_imports_counts_directly_and_by_a_detour(tmp_path, monkeypatch):
    found = []
    for value in ("1", "2"):
        own(tmp_path, monkeypatch, f"VALUE = {value}\n", "deepest")
        own(tmp_path, monkeypatch, "def f():\n    import deepest as d\n    return d.VALUE\n", "helper")
        found.append(digest_of(tmp_path, monkeypatch, "from helper import f\ndef mine(evidence): f()\n"))
    assert found[0] != found[1]


def test_what_only_a_type_checker_imports_does_not_count(tmp_path, monkeypatch):
    found = []
    for value in ("1", "2"):
        own(tmp_path, monkeypatch, f"VALUE = {value}\n", "helper")
        code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from helper import VALUE\ndef mine(e): pass\n"
        found.append(digest_of(tmp_path, monkeypatch, code))
    assert found[0] == found[1]


def package(folder: Path, **files: str) -> Path:
    place = folder / "packed"
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / f"{name}.py").write_text(text)
    forget()
    return place


HANDING = {
    "__init__": '"""Docs."""\nfrom packed.one import first\nfrom packed import two\n__all__ = ["first", "two"]\n',
    "one": "from packed.zero import f\ndef first(evidence): return f()\n",
    "zero": "def f(): return 0\n",
    "two": "def second(evidence): return 2\n",
}


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        ("packed.first", ["packed.one", "packed.zero"]),
        ("packed.one.first", ["packed.one", "packed.zero"]),
        ("packed.two.second", ["packed.two"]),
    ],
)
def test_a_package_that_only_imports_hands_on_what_is_asked_for(tmp_path, monkeypatch, target, reached):
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, **HANDING)
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.split(".")[0] != "packed"})
    before = sources.digests({"_target_": target})
    for name, text in HANDING.items():
        package(tmp_path, **{name: text + "CHANGED = 1\n"} if name != "__init__" else {})
        assert (sources.digests({"_target_": target}) != before) == (f"packed.{name}" in reached), name
        package(tmp_path, **{name: text})


def test_a_package_that_does_more_than_import_counts_itself(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for value in ("1", "2"):
        package(tmp_path, **HANDING | {"__init__": HANDING["__init__"] + f"two.level = {value}\n"})
        found.append([sources.digests({"_target_": f"packed.{name}"}) for name in ("first", "two.second")])
    assert found[0][0] != found[1][0]


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("from functools import partial\ndef base(e, p): return VALUE\nmine = partial(base, p=2)\n", "mine"),
        ("from functools import wraps\nfrom pruning.scorers import magnitude\n@wraps(magnitude)\n"
         "def mine(e): return VALUE\n", "mine"),
        ("class Holder:\n    @staticmethod\n    def mine(e): return VALUE\n", "Holder.mine"),
        ("class Holder:\n    def __call__(self, e): return VALUE\nmine = Holder()\n", "mine"),
    ],
    ids=["a partial function", "wrapped", "in a class", "an instance"],
)  # fmt: skip
def test_the_file_that_a_path_names_counts_whatever_it_names_there(tmp_path, monkeypatch, code, target):
    found = []
    for value in ("1", "2"):
        name = own(tmp_path, monkeypatch, code.replace("VALUE", value))
        found.append(sources.digests({"_target_": f"{name}.{target}"}))
    assert list(found[0]) == [f"own_code.{target}"]
    assert found[0] != found[1]


def test_targets_are_found_at_any_depth_and_where_hydra_names_them_otherwise(tmp_path, monkeypatch):
    name = own(tmp_path, monkeypatch, "def mine(e): pass\ndef other(e): pass\n")
    deep = {"a": [{"b": {"_target_": f"{name}.mine"}}], "c": {"_target_": "torch.optim.Adam", "d": "own_code.no"}}
    hydra = {"_target_": "hydra.utils.get_method", "path": f"{name}.other"}
    assert list(sources.digests({"x": deep, "y": hydra})) == ["own_code.mine", "own_code.other"]


def test_code_in_no_file_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_up", type(sys)("made_up"))
    forget()
    with pytest.raises(ConfigurationError, match=r"_target_=made_up\.mine: its code is in no file"):
        sources.digests({"_target_": "made_up.mine"})


def test_libraries_are_those_that_the_code_behind_targets_imports(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, "def f():\n    import sklearn.svm, os\n", "helper")
    name = own(tmp_path, monkeypatch, "import helper\nfrom scipy import stats\ndef mine(e): pass\n")
    assert sources.libraries({"_target_": f"{name}.mine"}) == {"sklearn", "scipy"}
    assert sources.libraries({"_target_": "experiments.models.timm_model"}) == {"torch", "torchvision", "timm"}
    assert sources.libraries([{"_target_": "torch.optim.Adam"}, {"_target_": "builtins.dict"}]) == {"torch"}


# Where code lies


def test_digests_do_not_depend_on_the_place(tmp_path, monkeypatch):
    found = []
    for folder in (tmp_path / "a", tmp_path / "z"):
        folder.mkdir()
        own(folder, monkeypatch, "SIGN = 1\n", "helper")
        found.append(digest_of(folder, monkeypatch, "import helper\ndef mine(evidence): pass\n"))
    assert found[0] == found[1]


def digests_of_ours() -> list[str]:
    return [
        str(sources.digests([{"_target_": name} for name in ("pruning.scorers.obs", "torch.optim.SGD")])),
        sources.digest(["experiments.running.stages.trained"]),
        sources.digest(["experiments.running.stages.masks"]),
    ]


ASK = f"""
from experiments.store import sources
print(sources.__file__)
{inspect.getsource(digests_of_ours)}
print(*digests_of_ours(), sep="\\n")
"""


def test_our_packages_count_where_they_are_installed_and_have_the_same_digests(tmp_path):
    installed = tmp_path / "lib" / "site-packages"
    for name in ("pruning", "experiments"):
        shutil.copytree(ROOT / name, installed / name, ignore=shutil.ignore_patterns("__pycache__"))

    def ask() -> list[str]:
        done = command(tmp_path, "-c", ASK, path=installed)
        assert done.returncode == 0, done.stderr
        place, *found = done.stdout.splitlines()
        assert str(installed) in place
        return found

    forget()
    here, there = digests_of_ours(), ask()
    assert here == there
    assert "pruning.scorers.obs" in there[0]
    assert "torch" not in there[0]
    file = installed / "pruning" / "selection" / "threshold.py"
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    edited = ask()
    assert edited[:2] == here[:2]  # neither scorers nor trainings select
    assert edited[2] != here[2]


def test_files_that_python_cannot_read_count_as_they_are(tmp_path, monkeypatch):
    found = []
    for text in ("print 1\n", "print 2\n"):
        (tmp_path / "ancient.py").write_text(text)
        code = "try:\n    import ancient\nexcept SyntaxError:\n    pass\ndef mine(evidence): pass\n"
        found.append(digest_of(tmp_path, monkeypatch, code))
    assert found[0] != found[1]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=30))
def test_any_comment_is_nothing_to_a_digest(text):
    comment = "# " + " ".join(text.splitlines()).replace("\x0c", "") + "\n"
    assert syntax._normal(ast.parse(PLAIN + comment)) == syntax._normal(ast.parse(PLAIN))
