"""Whether the user's metric can be there, read from its source: nothing of theirs runs until a trial does.

What a source leaves open (a decorator, a name from elsewhere, names that are made as it runs) is taken for right here,
and looked at again by `runners.metric` once it is imported.
"""

import ast
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, all_suffixes
from pathlib import Path

from estimators.errors import BadInput, UnknownName

Function = ast.FunctionDef | ast.AsyncFunctionDef
Binding = tuple[str, ast.AST | None]
"""A name of the module, and what it stands for, where that can be seen."""
ARGUMENTS = 2
"""The examples and the generations."""
_OPEN = ("globals", "locals", "vars", "exec", "eval", "setattr", "__dict__", "modules")
"""What a module that uses it may call its functions, nobody knows."""


def check_source(metric: str, folder: Path) -> None:
    """
    Raises:
        BadInput: there is no such module in the folder, no such function in it, or it cannot be called as a metric is.
    """
    module, _, name = metric.partition(":")
    source = _source_of(module, folder)
    if source is None:
        return
    tree = _parsed(metric, source)
    bindings = list(_bindings(tree))
    known = [node for bound, node in bindings if bound == name]
    if not known and not _is_open(tree, bindings):
        functions = [bound for bound, node in bindings if isinstance(node, Function)]
        raise UnknownName(f"--metric {module}: function", name, functions, f"({source} has none of that name)")
    if len(known) == 1 and (why := _objection(known[0])):
        raise BadInput(f"--metric {metric}: {why} ({source}, line {getattr(known[0], 'lineno', 1)})")


def _source_of(module: str, folder: Path) -> Path | None:
    """What Python would import; None: it is compiled, and says nothing."""
    path = folder.joinpath(*module.split("."))
    for source in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if any(source.with_name(f"{source.stem}{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
            return None
        if source.is_file():
            return source
    if any(path.with_name(f"{path.name}{suffix}").exists() for suffix in all_suffixes()):
        return None
    if path.is_dir():
        raise BadInput(f"--metric {module}: {path} is a folder without __init__.py, so it has no functions")
    raise BadInput(f"--metric {module}: there is no module of that name in {folder}")


def _parsed(metric: str, source: Path) -> ast.Module:
    try:
        return ast.parse(source.read_bytes())
    except OSError as error:
        raise BadInput(f"--metric {metric}: {source}: {error.strerror}") from None
    except SyntaxError as error:
        raise BadInput(f"--metric {metric}: {source}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--metric {metric}: {source}: {error}") from None


def _bindings(node: ast.AST) -> Iterator[Binding]:
    """Every name of the module's own scope, also where it is bound within an `if`, a `try` or a loop."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name, child
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield from ((one.asname or one.name.partition(".")[0], None) for one in child.names)
        elif isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Name) and len(child.targets) == 1:
            yield child.targets[0].id, child.value
            yield from _bindings(child.value)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, None
        elif not isinstance(child, ast.Lambda):
            yield from _bindings(child)


def _is_open(tree: ast.Module, bindings: list[Binding]) -> bool:
    """Whether the module may have names that its own scope does not show."""
    words = {word for node in ast.walk(tree) for word in (getattr(node, "id", ""), getattr(node, "attr", ""))}
    declared = any(isinstance(node, (ast.Global, ast.Match)) for node in ast.walk(tree))
    return declared or not words.isdisjoint(_OPEN) or any(name in ("*", "__getattr__") for name, _ in bindings)


def _objection(node: ast.AST | None) -> str | None:
    """Why what stands there for the metric is none; what a decorator made of it is not known."""
    if isinstance(node, (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.JoinedStr)):
        return "that is a value, and no function"
    if not isinstance(node, (Function, ast.Lambda)) or (isinstance(node, Function) and node.decorator_list):
        return None
    if isinstance(node, ast.AsyncFunctionDef):
        return "it is async, and a metric returns its number at once"
    return None if _takes(node.args) else "it must take two arguments: the examples and the generations"


def _takes(arguments: ast.arguments) -> bool:
    """Whether it can be called with just as many as a metric is."""
    places = len(arguments.posonlyargs) + len(arguments.args)
    needs_names = any(default is None for default in arguments.kw_defaults)
    enough = places >= ARGUMENTS or arguments.vararg is not None
    return enough and places - len(arguments.defaults) <= ARGUMENTS and not needs_names
