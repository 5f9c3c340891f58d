"""A read model is one folder. Its declaration there is enough for all other parts to find it."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from drawdown.command_line.app import app
from drawdown.serving import SERVICES
from services.auditor.replayed.fold import Fold
from services.auditor.tables import TABLES
from shared.runtime.read_models import READ_MODELS, ReadModel
from shared.runtime.roles import SERVICE_ROLES

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()
COMMANDS = typer.main.get_command(app)

of_each = pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.name)


def service_of_compose(name: str) -> str:
    """Return the lines of a service in compose.yaml."""
    found = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", COMPOSE, re.MULTILINE)
    assert found, f"compose.yaml has no service {name}"
    return found[1]


def test_read_models_are_found_by_their_declarations() -> None:
    declared = {path.parent.name for path in ROOT.glob("services/*/read_model.toml")}
    assert {model.name for model in READ_MODELS} == declared >= {"balance", "incentives", "signals"}


@of_each
def test_each_read_model_has_a_service_a_command_and_a_role(model: ReadModel) -> None:
    assert model.name in SERVICES
    assert import_module(f"services.{model.name}.service").run
    assert COMMANDS.commands[model.name].help == model.summary  # type: ignore[attr-defined]
    assert model.role in SERVICE_ROLES


@of_each
def test_each_read_model_brings_its_own_schema(model: ReadModel) -> None:
    statements = "".join(path.read_text() for path in sorted((ROOT / "services" / model.name / "schema").iterdir()))
    assert f"CREATE SCHEMA {model.name};" in statements
    assert f"CREATE TABLE ledger.checkpoints_{model.name} PARTITION OF ledger.checkpoints" in statements
    for table in model.qualified_tables:
        assert f"CREATE TABLE {table} (" in statements


@of_each
def test_the_audit_folds_and_compares_every_table_of_each_read_model(model: ReadModel) -> None:
    assert set(model.qualified_tables) == {table.name for table in TABLES if table.name.startswith(f"{model.name}.")}
    assert set(Fold(0).rows(model.name)) <= set(model.qualified_tables)


@of_each
def test_compose_runs_each_read_model_under_its_own_login(model: ReadModel) -> None:
    service = service_of_compose(model.name)
    assert f"command: [{model.name}]\n" in service
    assert f"DRAWDOWN_DATABASE_URL: postgresql://{model.role}@postgres/drawdown\n" in service
    assert f"{{ source: database_{model.name}, target: database }}\n" in service
    assert f"{{ source: database_{model.name}, target: {model.role} }}\n" in service_of_compose("migrate")
    assert f'/database/{model.role}" }}\n' in COMPOSE


def test_compose_runs_every_service_and_gives_no_login_to_another() -> None:
    for name in SERVICES:
        assert f"command: [{name}]\n" in service_of_compose(name)
    logins = re.findall(r"target: (drawdown_[a-z]+) \}", service_of_compose("migrate"))
    assert sorted(logins) == sorted(SERVICE_ROLES)


@of_each
def test_a_page_for_operators_names_each_read_model(model: ReadModel) -> None:
    page = (ROOT / "docs" / "database.md").read_text()
    assert all(f"`{table}`" in page for table in (*model.qualified_tables, f"ledger.checkpoints_{model.name}"))
    assert f"`{model.role}` {model.connections}" in page
