"""The tree keeps its promises: imports go left, nothing goes round, and each heavy library has its one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("profiles", "estimators", "runners", "planner")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 300, 60, 12

# Who may import what, beyond the standard library and ourselves.
ALLOWED = {
    "torch": ("runners/",),
    "transformers": ("runners/",),
    "peft": ("runners/",),
    "bitsandbytes": ("runners/",),
    "pynvml": ("runners/probe.py",),
    "optuna": ("planner/sweep/study.py",),
    "sqlalchemy": ("planner/sweep/address.py",),
    "ray": ("runners/executors/ray.py",),
    "rich": ("planner/report/",),
    "jinja2": ("planner/report/capacity/page.py",),
    "yaml": ("planner/emit/",),
    "click": ("planner/cli.py", "planner/commands/", "planner/__main__.py"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path, *, at_import: bool = False) -> set[str]:
    """Every module that a file imports, in functions too; with `at_import`, only what runs when it is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` is an import of the module; Python runs the package before either.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & MODULES or {node.module})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_left(path: Path) -> None:
    rank = PACKAGES.index(path.relative_to(ROOT).parts[0])
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top in PACKAGES:
            assert PACKAGES.index(top) <= rank, f"{name_of(path)} imports {imported}: against the arrows"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_library_has_its_place(path: Path) -> None:
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top in sys.stdlib_module_names or top in PACKAGES:
            continue
        assert top in ALLOWED, f"{name_of(path)} imports {top}, which no file may"
        assert name_of(path).startswith(ALLOWED[top]), f"{name_of(path)} imports {top}; only {ALLOWED[top]} may"


def test_what_a_module_keeps_to_itself_no_other_imports() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{name_of(path)} imports {private[0]} of {node.module}"


def test_no_import_cycle() -> None:
    modules = {module_of(path): path for path in FILES}
    graph = {name: imports_of(path, at_import=True) & modules.keys() - {name} for name, path in modules.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                walk(target, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def functions() -> list[tuple[str, int]]:
    rows = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                rows.append((f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1))
    return rows


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_knows(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_functions_are_short() -> None:
    lengths = functions()
    assert [name for name, length in lengths if length > LONGEST_FUNCTION] == []
    assert sorted(length for _, length in lengths)[len(lengths) // 2] <= MEDIAN_FUNCTION


def test_planning_needs_neither_torch_nor_the_driver_library() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['pynvml'] = None; "
        "from planner.__main__ import main; "
        "sys.argv = ['plan', '--model', 'llama-7b', '--gpus', 'rtx-4090', '--quiet']; main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "llama-7b" in done.stdout
