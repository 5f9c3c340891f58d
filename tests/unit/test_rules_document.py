"""docs/rules.md names only modules and tests that exist, and names every module of the rules."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/rules.md").read_text("utf-8")
ROWS = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("| ")][1:]


def defined_in(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


# Modules that only one service uses are in that service, under the same import rule as `shared/rules`.
ELSEWHERE = {"rating": "services/incentives", "snapshot_pieces": "services/allocation/memory"}


def file_of(module: str) -> Path:
    return ROOT / ELSEWHERE.get(module, "shared/rules") / f"{module}.py"


def test_every_module_and_function_that_the_page_names_exists() -> None:
    for _, rooms, _ in ROWS:
        for module, *path in [room.split(".") for room in re.findall(r"`([^`]+)`", rooms)]:
            assert set(path) <= defined_in(file_of(module)), (module, path)


def test_every_test_that_the_page_names_exists() -> None:
    for path, _, name in [named.partition("::") for named in re.findall(r"`(tests/[^`]+)`", TEXT)]:
        assert (ROOT / path).exists(), path
        assert not name or name in defined_in(ROOT / path), (path, name)


def test_the_page_names_every_module_of_the_rules() -> None:
    named = {room.split(".")[0] for _, rooms, _ in ROWS for room in re.findall(r"`([^`]+)`", rooms)}
    modules = {path.stem for path in (ROOT / "shared/rules").glob("*.py")} - {"__init__", "entries"}
    assert modules | set(ELSEWHERE) == named
