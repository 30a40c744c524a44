"""What a function says, as text: its source, and that of all of its own package that it names, and what that names.

A border that stands in a helper, or in a table beside it, counts as one that stands in the function does. Sources are
read, values are not: the text is the same in every process. Names of modules are followed; what an import inside a
function brings is not seen.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from symtable import SymbolTable, symtable


def spelled(function: Callable[..., object]) -> str:
    """The function's own source, then the definitions that it rests on, by module and name.

    Raises ValueError for what no source tells all of: a closure, anything but a function, names of `import *`.
    """
    function = inspect.unwrap(function)
    if not inspect.isfunction(function) or function.__closure__:
        raise ValueError(f"{function!r} must be a function of a module: what else it holds stands in no source")
    home, found = function.__module__, dict[tuple[str, str], str]()
    waiting = [(home, path) for node in _written(function) for path in _paths(node)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        module, path = place = waiting.pop()
        if place in seen or module.partition(".")[0] != home.partition(".")[0]:
            continue
        seen.add(place)
        name, _, rest = path.partition(".")
        defining = _read(module).defining.get(name, [])
        if not defining and f"{module}.{name}" in sys.modules:
            waiting.append((f"{module}.{name}", rest))
        elif not defining and "*" in _read(module).defining and not hasattr(builtins, name):
            raise ValueError(f"{module}: `import *` hides where {name!r} comes from; import it by its name")
        for node in defining:
            if isinstance(node, ast.Import | ast.ImportFrom):
                waiting.append(_origin(module, node, name, rest))
            else:
                waiting += [(module, read) for read in _paths(node)]
                found[module, name] = "\n".join(_read(module).source_of(node) for node in defining)
    return "\n".join([inspect.getsource(function), *(found[place] for place in sorted(found))])


@dataclass(frozen=True)
class _Module:
    """A module's source, and the statements at its top that bind each name."""

    lines: list[str]
    tree: ast.Module
    defining: dict[str, list[ast.stmt]]

    def source_of(self, node: ast.stmt) -> str:
        return "\n".join(self.lines[_first_line(node) - 1 : node.end_lineno])


@cache
def _read(module: str) -> _Module:
    file = getattr(sys.modules.get(module), "__file__", None)
    text = ""
    if file:
        with tokenize.open(file) as source:
            text = source.read()
    tree, defining = ast.parse(text), dict[str, list[ast.stmt]]()
    for node in tree.body:
        for name, binding in _bound(node):
            defining.setdefault(name, []).append(binding)
    return _Module(text.split("\n"), tree, defining)


def _written(function: Callable[..., object]) -> list[ast.stmt | ast.expr]:
    """Where a function stands in its module; of several on one line, all."""
    written = ast.walk(_read(function.__module__).tree)
    line = function.__code__.co_firstlineno
    return [n for n in written if isinstance(n, ast.FunctionDef | ast.Lambda) and _first_line(n) == line]


def _bound(node: ast.stmt) -> set[tuple[str, ast.stmt]]:
    """The names that a statement gives a meaning, or a part of it: an entry of a table, or a call of its methods.

    With each the statement that does; of one within `if` or `try` that is the whole, but for an import.
    """
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {(name, node)}
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return {(alias.asname or alias.name.partition(".")[0], node) for alias in aliases}
    changed = [n for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store)]
    changed += [n.value.func for n in ast.walk(node) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    found = {(owner, node) for n in changed if (owner := _owner(n))}
    for inner in (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.excepthandler)):
        for name, binding in _bound(inner):  # type: ignore[arg-type]  # a handler is a block of statements, as they are
            found.add((name, binding if isinstance(binding, ast.Import | ast.ImportFrom) else node))
    return found


def _owner(node: ast.AST) -> str | None:
    """`table` of `table`, `table[key]`, `table.update`."""
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _origin(module: str, node: ast.Import | ast.ImportFrom, name: str, rest: str) -> tuple[str, str]:
    """The module that an imported name comes from, and its path there."""
    alias = next(a for a in node.names if name in (a.asname, a.name.partition(".")[0]))
    if isinstance(node, ast.ImportFrom):
        origin = resolve_name("." * node.level + (node.module or ""), sys.modules[module].__package__)
        return origin, f"{alias.name}.{rest}".rstrip(".")
    return alias.name if alias.asname else name, rest


def _paths(node: ast.stmt | ast.expr) -> set[str]:
    """What is read of the module's own names, `name` or `name.attribute`."""
    known = _names(symtable(ast.unparse(node), "", "exec"))
    read = (ast.unparse(n) for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute))
    return {path for path in read if path.replace(".", "").isidentifier() and path.partition(".")[0] in known}


def _names(table: SymbolTable) -> set[str]:
    """All names but the variables of functions."""
    top = table.get_type() == "module"
    own = {symbol.get_name() for symbol in table.get_symbols() if top or symbol.is_global()}
    return own.union(*map(_names, table.get_children()))


def _first_line(node: ast.stmt | ast.expr) -> int:
    """That of its first decorator, where it has any."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min(n.lineno for n in (node, *decorators))
