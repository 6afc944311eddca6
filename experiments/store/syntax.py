"""Digests and imports of Python files. Comments, docstrings and layout do not count."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

Import = tuple[str, str]
"""A module, and what is imported from it; "" for the module as a whole."""


@dataclass(frozen=True)
class Source:
    """A file: digest of its code, its imports, and what it re-exports (name → import).

    `hands_on` is None for a file that does more than import.
    """

    digest: str
    imports: tuple[Import, ...]
    hands_on: Mapping[str, Import] | None


@cache
def read(path: Path, module: str) -> Source:
    """Read the file of `module`, once per process: code that runs was loaded before later edits."""
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
        digest = hashlib.sha256(_normal(tree).encode()).hexdigest()
    except (SyntaxError, ValueError):  # compiled code, or that of a later Python
        return Source(hashlib.sha256(content).hexdigest(), (), None)
    is_package = path.name == "__init__.py"
    imports = list(_imports(tree, module if is_package else module.rpartition(".")[0]))
    only = is_package and all(isinstance(statement, _IMPORTING) or _is_all(statement) for statement in tree.body)
    hands_on = {bound: origin for bound, origin in imports if origin[1]} if only else None
    return Source(digest, tuple(dict.fromkeys(origin for _, origin in imports)), hands_on)


_IMPORTING = (ast.Import, ast.ImportFrom)


def _is_all(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, or sets `__all__`."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id == "__all__" for target in statement.targets)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, Import]]:
    """The names that import statements bind, and what they import; not where only a type checker reads."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, (alias.name, "")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((alias.asname or alias.name, (module, alias.name)) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            for name in ("body", "orelse", "handlers", "finalbody", "cases"):  # statements are in nothing else
                inner = getattr(node, name, ())
                waiting += inner if isinstance(inner, list) else ()


def _normal(tree: ast.Module) -> str:
    """A syntax tree as text, node after node from its root, with the number of those below each.

    It is the same under every version of Python, which those of `ast.dump` and `ast.unparse` are not: empty fields are
    left out, as later versions have more of them. So are strings that are statements: they say nothing to a computer.
    """
    words: list[str] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        words.append(type(node).__name__)
        below: list[ast.AST] = []
        for name in _fields(type(node)):  # type: ignore[arg-type]  # classes are hashable, as the stubs do not say
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                words.append(name)
                below.append(value)
            elif isinstance(value, list):
                items = [item for item in value if not _is_idle(item, node)]
                nodes = [item for item in items if isinstance(item, ast.AST)]
                if len(nodes) < len(items):  # names, or defaults, some of them absent
                    words.append(ascii([None if isinstance(item, ast.AST) else ascii(item) for item in items]))
                if items:
                    words.append(f"{name} {len(items)}")
                    below += nodes
            elif value is not None:
                words.append(f"{name} {value!a}")
        waiting += reversed(below)
    return "\n".join(words)


@cache
def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    return tuple(name for name in kind._fields if name not in ("ctx", "kind", "type_comment", "type_ignores"))


def _is_idle(item: Any, parent: ast.AST) -> bool:
    """Whether it is a string that is a statement, or an empty part of an f-string, which some versions leave out."""
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    return isinstance(parent, ast.JoinedStr) and isinstance(item, ast.Constant) and item.value == ""
