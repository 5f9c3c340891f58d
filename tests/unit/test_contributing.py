"""The documents name files that exist, and the checklists for contributors are complete.

Where a file of the product moves, the list in CONTRIBUTING.md is the one place to change.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

from services.api.app import OPEN, PROTECTED
from shared.rules import vocabulary
from shared.rules.command_types import COMMANDS
from shared.runtime.settings import Settings

ROOT = Path(__file__).parents[2]
ROOMS = ("services", "shared", "drawdown", "deploy")
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
MADE_BY_MAKE = ("deploy/secrets", "deploy/.env")
CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


class Item(NamedTuple):
    """A line of a checklist: the files that it names before its colon, and whether each change needs them."""

    always: bool
    patterns: list[str]


# ---- Paths ----------------------------------------------------------------------------------------------------------


def files(pattern: str) -> list[Path]:
    """Return what a path names: `NAME` and `*` stand for any name."""
    return sorted(path for path in ROOT.glob(re.sub(r"\bNAME\b", "*", pattern)) if "__pycache__" not in path.parts)


def is_path(word: str) -> bool:
    """Return whether the word names a file or folder of the repository."""
    if "/" not in word:
        return re.fullmatch(r"[A-Z]+\.md|pyproject\.toml", word) is not None
    return word.split("/")[0] in {*ROOMS, "tests", "docs"} and not word.startswith(MADE_BY_MAKE)


def named_in(text: str) -> Iterator[str]:
    """Yield the paths between backticks. The name of a test after `::` is not part of its path."""
    for word in re.findall(r"`([^`\s]+)`", CODE.sub("", text)):
        path = word.partition("::")[0].rstrip("/")
        if is_path(path):
            yield path


@cache
def names_of_files() -> frozenset[str]:
    return frozenset(path.name for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.*"))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    assert [path for path in named_in(page.read_text("utf-8")) if not files(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_module_that_a_page_names_by_its_last_name_exists(page: Path) -> None:
    named = re.findall(r"`([a-z_]+\.(?:py|sql))`", CODE.sub("", page.read_text("utf-8")))
    assert set(named) <= names_of_files()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text("utf-8"))):
        if re.match("https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_name_in_brackets_behind_a_module_occurs_in_it(page: Path) -> None:
    assert unknown_names(page.read_text("utf-8")) == []


def unknown_names(text: str) -> list[str]:
    """Return the names that the text says are in a module (`module.py` (`name`, `name`)), and that are not."""
    found = re.findall(r"`([^`\s]+\.py)` \(((?:`\w+`(?:, | and )?)+)\)", CODE.sub("", text))
    return [
        f"{path}: {name}"
        for path, names in found
        if is_path(path)
        for name in re.findall(r"\w+", names.replace(" and ", " "))
        if not any(re.search(rf"\b{name}\b", file.read_text("utf-8")) for file in files(path))
    ]


def test_a_wrong_name_in_brackets_is_found() -> None:
    known, unknown = "`services/api/app.py` (`PROTECTED`)", "`services/api/app.py` (`PROTECTED`, `_keep`)"
    assert unknown_names(f"in {known} and {unknown}") == ["services/api/app.py: _keep"]


def test_a_wrong_path_is_found() -> None:
    assert list(named_in("in `services/nowhere.py`, `deploy/secrets/x` and `make up`")) == ["services/nowhere.py"]
    assert files("services/nowhere.py") == []


# ---- Settings and targets -------------------------------------------------------------------------------------------


def test_every_setting_is_explained_and_every_setting_of_the_table_exists() -> None:
    settings = {f"DRAWDOWN_{name.upper()}" for name in Settings.model_fields}
    everything = " ".join(page.read_text("utf-8") for page in PAGES)
    assert settings <= set(re.findall(r"DRAWDOWN_[A-Z_]+", everything))
    table = (ROOT / "README.md").read_text("utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"DRAWDOWN_[A-Z_]+", table)) <= settings


def test_every_target_of_make_exists() -> None:
    rules = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    said = {
        name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert "test-quick" in said
    assert said <= {name for rule in rules for name in rule.split()}


# ---- Pictures -------------------------------------------------------------------------------------------------------


def test_the_picture_of_the_parts_names_every_service() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    picture = page.partition("```mermaid\n")[2].partition("```")[0]
    services = {path.parent.name for path in files("services/*/__init__.py")}
    assert [name for name in services if not re.search(rf"\b{name}\b", picture)] == []


@pytest.mark.parametrize("step", ["fetch", "decode", "look up", "decide", "commit", "follow", "signal"])
def test_each_step_of_a_batch_has_a_file(step: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    (row,) = re.findall(rf"^\| \d {step} \|.*$", page, re.MULTILINE)
    assert list(named_in(row.split("|")[3]))


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    assert [path.name for path in files("docs/decisions/*.md") if f"](decisions/{path.name})" not in index] == []
    assert [
        path.name for path in files("docs/*.md") if path.name != "README.md" and f"]({path.name}" not in index
    ] == []


# ---- Checklists -----------------------------------------------------------------------------------------------------


def checklist(heading: str) -> list[Item]:
    """Return the items of the list under a heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    heads = [re.split(r":\s", item, maxsplit=1)[0] for item in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]
    return [Item(head.startswith("**always**"), list(named_in(head))) for head in heads]


def always(heading: str) -> list[str]:
    return [pattern for item in checklist(heading) if item.always for pattern in item.patterns]


def listed(heading: str) -> set[Path]:
    return set(chain.from_iterable(files(pattern) for item in checklist(heading) for pattern in item.patterns))


def followers() -> set[str]:
    """Return the name of every service that defines a follower of the ledger."""
    return {path.parent.name for path in files("services/*/service.py") if defines(path, {"FOLLOWER", "follower"})}


def defines(path: Path, names: set[str]) -> bool:
    for node in ast.parse(path.read_text("utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if {target.id for target in targets if isinstance(target, ast.Name)} & names:
            return True
        if isinstance(node, ast.FunctionDef) and node.name in names:
            return True
    return False


def text_of(pattern: str) -> str:
    return "\n".join(path.read_text("utf-8") for path in files(pattern))


def product() -> Iterator[tuple[Path, str]]:
    """Yield every source file of the product with its text."""
    for path in chain.from_iterable((ROOT / room).rglob("*") for room in ROOMS):
        if path.suffix in (".py", ".sql", ".yaml") and path.is_file():
            yield path, path.read_text("utf-8")


def quoted_in(text: str, words: Iterable[str]) -> set[str]:
    """Return those of the words that are a literal in the text, also as the name of a service's role."""
    return {word for word in words if re.search(rf"""(["'`])(?:drawdown_)?{word}\1""", text)}


WORDS = {
    "Add a command": vocabulary.COMMAND_TYPES,
    "Add an entry kind": vocabulary.ENTRY_KINDS,
    "Add a pocket": vocabulary.POCKETS,
}
# Some reasons are everyday words, which many files hold.
ALWAYS = {**WORDS, "Add a quarantine reason": vocabulary.QUARANTINE_REASONS}


@pytest.mark.parametrize("heading", [*ALWAYS, "Add a read model", "Add an API route"])
def test_every_item_of_a_checklist_names_files(heading: str) -> None:
    items = checklist(heading)
    assert len(items) > 5
    assert any(item.always for item in items)
    assert all(item.patterns and all(map(files, item.patterns)) for item in items)


@pytest.mark.parametrize(("heading", "words"), ALWAYS.items(), ids=str)
def test_every_file_marked_always_contains_every_current_word(heading: str, words: tuple[str, ...]) -> None:
    for pattern in always(heading):
        text = text_of(pattern)
        assert [word for word in words if not re.search(rf"\b({word}|{_type_of(word)})\b", text)] == [], pattern


@pytest.mark.parametrize(("heading", "words"), WORDS.items(), ids=str)
def test_every_file_that_contains_such_a_word_is_in_the_checklist(heading: str, words: tuple[str, ...]) -> None:
    holding = {path for path, text in product() if quoted_in(text, words)}
    assert len(holding) > 5
    assert sorted(page_id(path) for path in holding - listed(heading)) == []


def _type_of(word: str) -> str:
    """Return the name of the class of a command; other words have none, and stand for themselves."""
    return COMMANDS[word].__name__ if word in COMMANDS else word


def test_every_command_has_a_handler_in_the_file_that_the_checklist_names() -> None:
    handlers = [path for path in always("Add a command") if "_HANDLERS" in text_of(path)]
    assert len(handlers) == 1
    named = re.findall(r"^    types\.([A-Za-z]+): _", text_of(handlers[0]), re.MULTILINE)
    assert sorted(named) == sorted(map(_type_of, vocabulary.COMMAND_TYPES))


def test_a_read_model_is_named_wherever_the_checklist_says() -> None:
    names = followers()
    assert "incentives" in names
    for pattern in always("Add a read model"):
        text = text_of(pattern)
        assert [name for name in names if not re.search(rf"(?<![a-z]){name}(?![a-z])", text)] == [], pattern


def test_every_file_that_lists_all_read_models_is_in_the_checklist() -> None:
    names = followers()
    listing = {path for path, text in product() if quoted_in(text, names) == names}
    assert sorted(page_id(path) for path in listing - listed("Add a read model")) == []


def test_every_module_with_routes_is_in_the_application_and_where_the_checklist_says() -> None:
    modules = {
        path for path in files("services/api/**/*.py") if re.search(r"^router = ", path.read_text(), re.MULTILINE)
    }
    assert modules <= listed("Add an API route")
    assert {Path(str(module.__file__)) for module in (*PROTECTED, *OPEN)} == modules


def test_there_are_ten_rules() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rules = text.partition("## Ten rules of English")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d+)\. ", rules, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert rules.count("- before:") == rules.count("- after:") == 10
