"""The rules of the house, read off the source itself.

import-linter checks who imports whom (``make lint``). This file checks what it cannot see:
docstrings, sizes, calls that read a clock or a die, what ``import`` drags along, and that a
test can fail at all. Each rule is a function from a syntax tree to the breaches it found, and
each is shown here to catch a planted one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "helios_ray"
TESTS = ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(TESTS.rglob("*.py"))

LARGEST_MODULE = 15 * 1024
PURE_ROOMS = ("operators", "protocol", "state")
RAY_ROOMS = ("cli", "environment", "runtime", "testing")
IMPURE_MODULES = """
    asyncio concurrent multiprocessing os queue random ray secrets selectors signal socket
    subprocess tempfile threading time uuid
"""

Rule: TypeAlias = Callable[[ast.Module], list[str]]
"""From a syntax tree to the breaches found in it, each with its line."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """The top-level name below ``helios_ray`` that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules_of(*rooms: str) -> list[Path]:
    return [path for path in MODULES if room(path) in rooms]


def modules_without(*rooms: str) -> list[Path]:
    return [path for path in MODULES if room(path) not in rooms]


def files_of(folder: str) -> list[Path]:
    return [path for path in TEST_FILES if path.is_relative_to(TESTS / folder)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def breaches(rule: Rule, paths: list[Path]) -> list[str]:
    """What ``rule`` finds in these files, each with its place."""
    return [f"{relative(path)}, {found}" for path in paths for found in rule(parse(path))]


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for an attribute chain that starts at a name, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every absolute import, wherever it stands, as its line and full dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func)


# --------------------------------------------------------------------------------- the rules


def impurities(tree: ast.Module) -> list[str]:
    """Clocks, dice, I/O, and the salted ``hash``: what a pure room may not touch."""
    found = [
        f"line {line}: imports {name}"
        for line, name in imports(tree)
        if name.split(".")[0] in IMPURE_MODULES.split()
    ]
    for line, name in calls(tree):
        last = name.rpartition(".")[2]
        if name in {"open", "print", "input", "hash"}:
            found.append(f"line {line}: calls {name}()")
        elif last in {"now", "utcnow", "today"} and re.search(r"\bdate(time)?\.", name):
            found.append(f"line {line}: reads the clock by {name}()")
        elif ".random." in f"{name}.":
            found.append(f"line {line}: rolls dice by {name}()")
    return found


def ray_imports(tree: ast.Module) -> list[str]:
    return [f"line {n}: imports {name}" for n, name in imports(tree) if name.split(".")[0] == "ray"]


def own_exceptions(tree: ast.Module) -> list[str]:
    """Exception classes that are public and do not derive from one of ``errors``."""
    builtin = re.compile(r"(Base)?Exception|\w+Error")
    ours = {name.rpartition(".")[2] for _, name in imports(tree) if ".errors." in name}
    return [
        f"line {node.lineno}: class {node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if any(builtin.fullmatch(dotted(base)) for base in node.bases)
        and not any(dotted(base) in ours for base in node.bases)
    ]


def unseeded_dice(tree: ast.Module) -> list[str]:
    """Any use of ``random`` but ``random.Random``: the global dice replay nothing."""
    found = [
        f"line {line}: imports {name}"
        for line, name in imports(tree)
        if name.startswith(("random.", "secrets", "uuid")) and name != "random.Random"
    ]
    for node in ast.walk(tree):
        name = dotted(node)
        if re.fullmatch(r"random\.\w+", name) and name != "random.Random":
            found.append(f"line {node.lineno}: uses {name}")
        elif isinstance(node, ast.Call) and name == "" and not node.args and not node.keywords:
            if dotted(node.func) in {"random.Random", "Random"}:
                found.append(f"line {node.lineno}: Random() without a seed")
        elif re.fullmatch(r"(os\.urandom|(np|numpy)\.random\.\w+)", name):
            found.append(f"line {node.lineno}: uses {name}")
    return found


def skipped_tests(tree: ast.Module) -> list[str]:
    """A skipped test is a promise that nobody checks."""
    forbidden = re.compile(
        r"(pytest\.)?(mark\.(skip|skipif|xfail)|skip|xfail|importorskip)|unittest\.skip\w*"
    )
    return [
        f"line {node.lineno}: {dotted(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and forbidden.fullmatch(dotted(node))
    ]


def sleeps(tree: ast.Module) -> list[str]:
    named = [n for n in imports(tree) if n[1] == "time.sleep"]
    called = [c for c in calls(tree) if c[1] in {"time.sleep", "asyncio.sleep"}]
    return [f"line {line}: {name}" for line, name in [*named, *called]]


def hopeless_tests(tree: ast.Module) -> list[str]:
    """Tests without an assertion of their own, or a call that is named as one."""
    asserting = re.compile(r"_?(assert|check|verify|expect|must)\w*|raises|warns|fail|approx")

    def can_fail(test: ast.AST) -> bool:
        return any(isinstance(node, ast.Assert) for node in ast.walk(test)) or any(
            asserting.fullmatch(name.rpartition(".")[2]) for _, name in calls(test)
        )

    return [
        f"line {node.lineno}: {node.name} asserts nothing"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not can_fail(node)
    ]


@pytest.mark.parametrize(
    ("rule", "planted", "innocent"),
    [
        (impurities, "import time", "from datetime import timedelta"),
        (impurities, "def f():\n    from os import path", "from posixpath import join"),
        (impurities, "from datetime import datetime\ndatetime.now()", "clock.now()"),
        (impurities, "import datetime\ndatetime.datetime.utcnow()", "row.today()"),
        (impurities, "np.random.default_rng()", "np.sort(randoms)"),
        (impurities, "group = hash(key) % 128", "group = stable_hash(key) % 128"),
        (impurities, "print('here')", "log.append('here')"),
        (ray_imports, "def f():\n    import ray.util.metrics", "import raylib"),
        (ray_imports, "from ray import remote", "from helios_ray import elements"),
        (own_exceptions, "class LateError(Exception): ...", "class _Stop(Exception): ..."),
        (unseeded_dice, "import random\nrandom.choice(x)", "import random\nrandom.Random(7)"),
        (unseeded_dice, "from random import choice", "from random import Random\nRandom(seed)"),
        (unseeded_dice, "import random\nrandom.Random()", "dice.choice(x)"),
        (unseeded_dice, "import uuid", "import json"),
        (skipped_tests, "@pytest.mark.skip\ndef test_a(): ...", "@pytest.mark.chaos\ndef f(): ..."),
        (skipped_tests, "pytest.importorskip('ray')", "rows.skip(3)"),
        (sleeps, "import time\ntime.sleep(1)", "clock.advance(1)"),
        (sleeps, "from time import sleep", "from time import monotonic"),
        (hopeless_tests, "def test_a():\n    run()", "def test_a():\n    assert run()"),
        (hopeless_tests, "async def test_a(): ...", "def helper():\n    run()"),
    ],
)
def test_each_rule_catches_a_planted_breach_and_only_that(
    rule: Rule, planted: str, innocent: str
) -> None:
    assert len(rule(ast.parse(planted))) >= 1
    assert rule(ast.parse(innocent)) == []


# ------------------------------------------------------------------------------- the package


def test_every_module_says_why_it_exists() -> None:
    silent = [relative(path) for path in MODULES if not ast.get_docstring(parse(path))]
    assert silent == []


def test_every_module_holds_one_idea_and_stays_small() -> None:
    sizes = {relative(path): path.stat().st_size for path in MODULES}
    assert {name: size for name, size in sizes.items() if size > LARGEST_MODULE} == {}


def test_the_pure_rooms_have_no_clock_no_dice_and_no_io() -> None:
    assert breaches(impurities, modules_of(*PURE_ROOMS)) == []


def test_only_the_runtime_and_what_stands_above_it_knows_ray() -> None:
    assert breaches(ray_imports, modules_without(*RAY_ROOMS)) == []


def test_the_simulation_rolls_only_seeded_dice() -> None:
    assert breaches(unseeded_dice, modules_of("simulation")) == []


def test_every_exception_of_the_package_is_in_errors() -> None:
    """A user who catches HeliosError catches everything; the simulated world dies its own way."""
    assert breaches(own_exceptions, modules_without("errors", "simulation", "testing")) == []


def test_every_exception_is_drawn_under_its_parent_in_the_tree_of_errors() -> None:
    tree = parse(PACKAGE / "errors.py")
    defined = {
        node.name: dotted(node.bases[0]) for node in tree.body if isinstance(node, ast.ClassDef)
    }

    drawn: dict[str, str] = {}
    ancestors: list[str] = ["Exception"]
    for line in (ast.get_docstring(tree) or "").splitlines():
        if found := re.match(r"    ([ │├└─]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = ancestors[depth - 1]
            ancestors[depth:] = [found[2]]

    assert drawn == defined


def test_what_needs_no_ray_does_not_import_ray() -> None:
    """A protocol test, a plan or an offline look at a checkpoint starts in a blink."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules_without(*RAY_ROOMS)
        if path.name != "__main__.py"
    ]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'ray' not in sys.modules, f'{name} imports ray'\n"
        "print(len(sys.argv) - 1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(names) > 0


# --------------------------------------------------------------------------------- the tests


def test_no_test_is_skipped() -> None:
    assert breaches(skipped_tests, TEST_FILES) == []


def test_every_test_asserts_something() -> None:
    assert breaches(hopeless_tests, TEST_FILES) == []


def test_unit_and_simulation_tests_never_sleep() -> None:
    assert breaches(sleeps, files_of("unit") + files_of("simulation")) == []


def test_unit_and_simulation_tests_need_no_ray() -> None:
    assert breaches(ray_imports, files_of("unit") + files_of("simulation")) == []
