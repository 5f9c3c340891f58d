"""The commands and metrics that the runbook names exist."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer
from prometheus_client import REGISTRY

from drawdown.command_line.app import app

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
COMMANDS = typer.main.get_command(app)


def known_commands() -> set[str]:
    """Return every command, with the name of its group before it."""
    names: set[str] = set()
    for name, command in COMMANDS.commands.items():  # type: ignore[attr-defined]
        names |= {f"{name} {each}" for each in getattr(command, "commands", ())} or {name}
    return names


def test_every_command_exists() -> None:
    said = set(re.findall(r"\bdrawdown ((?:audit|offsets|quarantine|spend|token) [a-z-]+)", RUNBOOK))
    said |= {f"audit {each}" for each in re.findall(r"\baudit (verify|replay|export)\b", RUNBOOK)}
    assert "offsets adopt" in said
    assert said <= known_commands()


def test_every_metric_exists() -> None:
    for service in (
        "allocation.metrics",
        "api.operating.operations",
        "api.watching.growth",
        "api.commands.refusing",
        "signals.last_word",
    ):
        import_module(f"services.{service}")
    import_module("shared.ledger.follow")
    families = {name for family in REGISTRY.collect() for name in (family.name, f"{family.name}_total")}
    said = set(re.findall(r"`(drawdown_[a-z_]+?)(?:\{[a-z_,]*\})?`", RUNBOOK)) - {"drawdown_api"}
    assert "drawdown_lag_seconds" in said
    assert said <= families


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", RUNBOOK))))
def test_every_link_has_a_target(link: str) -> None:
    page, _, anchor = link.partition("#")
    text = (ROOT / "docs" / page).read_text() if page else RUNBOOK
    if anchor:
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
