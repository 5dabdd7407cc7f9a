"""Would a test notice? One place of a source file is changed, its tests run, and so on.

    python scripts/mutants.py --sample 30
    python scripts/mutants.py --file soupray/recipes/ose.py --seed 1

A mutant that no test fails on has survived. Only a copy of the package is changed, in a temporary
folder that comes first on the path. Libraries are imported once: each mutant runs in a fork.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).parent.parent
LEAST_LIMIT_S, TIMES_PLAIN = 60.0, 6
"""A mutant may loop for ever: it is stopped after this, or so many times what no change takes."""

RECIPES = ("recipes", "recipe_matrix")
TESTS: dict[str, tuple[str, ...]] = {
    "soupray/maths/geometry.py": ("geometry",),
    "soupray/maths/metrics.py": ("metrics", "measures", "natural_shifts"),
    "soupray/maths/neighbours.py": ("outputs",),
    "soupray/maths/outputs.py": ("outputs",),
    "soupray/maths/weights.py": ("weights", "measures"),
    "soupray/core/candidates.py": ("records", "weights", "recipes", "outputs", "reporting"),
    "soupray/evaluation/schedule.py": ("schedule",),
    "soupray/store/lease.py": ("lease",),
    "soupray/store/checkpoints.py": ("checkpoints",),
    "soupray/reporting/ranking.py": ("reporting",),
}
"""The test files of a source file, the quick ones first; those of recipes are `RECIPES`."""

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
EXTREMES = {"min": "max", "max": "min"}
LEFT_ALONE = ("annotation", "returns", "decorator_list", "keywords")
"""Fields of statements that are no code; `keywords` are those of a class."""


class Mutant(NamedTuple):
    """A changed source, and what is changed there."""

    source: str
    line: int
    change: str


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in place of `node`, one change each."""
    match node:
        case ast.Compare(left=left, ops=[op, *ops], comparators=others):
            yield from (ast.Compare(left, [o(), *ops], others) for o in COMPARED[type(op)])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED:
            yield ast.BinOp(left, COMPUTED[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in COMPUTED:
            yield ast.AugAssign(target, COMPUTED[type(op)](), value)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case _:
            yield from changed_value(node)


def changed_value(node: ast.AST) -> Iterator[ast.AST]:
    """The same, of what is no operator."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(v) for v in (value + 1, value - 1, -value) if v != value)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=more) if name in EXTREMES:
            yield ast.Call(ast.Name(EXTREMES[name]), args, more)
        case ast.Call(func=func, args=[ast.Name() as a, ast.Name() as b], keywords=more):
            yield ast.Call(func, [b, a], more)
        case ast.Tuple(elts=[ast.Name() as a, ast.Name() as b], ctx=ast.Load()):
            yield ast.Tuple([b, a], ast.Load())
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """(parent, field, index in it, node) of all code below `node`; f-strings are strings."""
    for field, value in ast.iter_fields(node):
        if isinstance(node, ast.stmt | ast.arguments | ast.arg) and field in LEFT_ALONE:
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield node, field, index if isinstance(value, list) else None, child
                yield from places(child)


def mutants(source: str) -> Iterator[Mutant]:
    """All of them, in the order of the source."""
    tree = ast.parse(source)
    for parent, field, index, node in places(tree):
        for new in changed(node):
            change = f"{ast.unparse(node)} -> {ast.unparse(new)}".replace("\n", " ")
            put(parent, field, index, new)
            yield Mutant(ast.unparse(ast.fix_missing_locations(tree)), node.lineno, change)
            put(parent, field, index, node)


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    """Replace a child of `parent`."""
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


class QuickFirst:
    """A plugin of pytest: tests of many examples wait for the others."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Stable: the others stay as they are."""
        items.sort(key=lambda item: hasattr(getattr(item, "obj", None), "hypothesis"))


def passes(names: tuple[str, ...], folder: Path, limit_s: float) -> bool | None:
    """Whether the tests pass with the package in `folder`; None if they do not end."""
    child = os.fork()
    if child == 0:
        os.setsid()  # what the tests start is stopped with them
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.path.insert(0, str(folder))
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True  # a mutant may be as long as the one before, and as old
        settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
        settings.load_profile("mutants")
        more = ["-x", "-q", "--hypothesis-seed=0"]
        runs = (pytest.main([*more, *options((name,))], [QuickFirst()]) for name in names)
        os._exit(any(runs))  # file by file
    until = time.monotonic() + limit_s
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(done[1]) == 0


def options(names: tuple[str, ...]) -> list[str]:
    """Of pytest: the test files, and no cache; the servers of some tests take too long."""
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in names]
    return ["-p", "no:cacheprovider", "-k", "not s3", *files]


@cache
def plain_s(names: tuple[str, ...]) -> float:
    """How long the tests take without any change."""
    began = time.monotonic()
    if not passes(names, ROOT, 3600):
        sys.exit(f"{', '.join(names)}: the tests fail without any change")
    return time.monotonic() - began


def survivors(path: str, names: tuple[str, ...], count: int | None, seed: int) -> tuple[int, int]:
    """(killed, tried) of one file; survivors are printed as they are found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "soupray", folder / "soupray")
        target = folder / path
        for old in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
            old.unlink()
        limit_s = max(LEAST_LIMIT_S, TIMES_PLAIN * plain_s(names))
        found = list(mutants(target.read_text()))
        if count is not None and count < len(found):
            chosen = random.Random(f"{seed} {path}").sample(range(len(found)), count)
            found = [found[i] for i in sorted(chosen)]
        killed = 0
        for mutant in found:
            target.write_text(mutant.source)
            if passes(names, folder, limit_s):
                print(f"{path}:{mutant.line}: {mutant.change}", flush=True)
            else:
                killed += 1
    print(f"{path}: {killed} of {len(found)} killed", flush=True)
    return killed, len(found)


def main() -> None:
    """Try the mutants of one file, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", action="append", help="of the package; several times for several")
    parser.add_argument("--sample", type=int, metavar="N", help="mutants a file, at random")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    recipes = sorted((ROOT / "soupray" / "recipes").glob("[!_]*.py"))
    table = {str(path.relative_to(ROOT)): RECIPES for path in recipes} | TESTS
    wanted = {path: table[path] for path in chosen.file or table}
    names = tuple(dict.fromkeys(name for found in wanted.values() for name in found))
    pytest.main(
        ["--collect-only", "-qq", "--disable-warnings", *options(names)]
    )  # imports what the tests import
    ours = (f"{ROOT}/soupray/", f"{ROOT}/tests/")  # these are imported anew, from the copy
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(ours):
            del sys.modules[name]
    results = [survivors(p, n, chosen.sample, chosen.seed) for p, n in wanted.items()]
    killed, tried = map(sum, zip(*results, strict=True))
    print(f"{killed} of {tried} killed: {killed / tried:.0%}")


if __name__ == "__main__":
    main()
