"""The door of PostgreSQL: each service's login in hostile hands. Statements that are not refused are rolled back."""

import asyncio

from drawdown.serving import SERVICES
from shared.runtime.read_models import READ_MODELS
from tests.security.check import Check, require
from tests.security.target import Answer, Mode, NoTargetError, Target
from tests.security.tenants import open_tenant, still_charges

_LOGINS = (*SERVICES, "audit")
_A_TEXT = "'security-check'"
_NO_RIGHT = "42501"
_OUT_OF_BOUNDS = "23514"
_NO_ROOM = "53300"
_NO_PASSWORD = ("28P01", "28000")
_CONNECTIONS = 90
_FEW = 60

_APPEND_ONLY = (
    "entries",
    "entries_0",
    "batches",
    "outcomes",
    "quarantine",
    "policies",
    "ad_accounts",
    "time_zones",
    "operators_log",
)
_CHANGES = tuple(
    statement
    for table in _APPEND_ONLY
    for statement in (
        f"DELETE FROM ledger.{table} WHERE false",
        f"TRUNCATE ledger.{table}",
        f"LOCK TABLE ledger.{table} IN ACCESS EXCLUSIVE MODE",
        f"ALTER TABLE ledger.{table} DISABLE TRIGGER ALL",
        f"DROP TABLE ledger.{table}",
    )
)
_SCHEMA = (
    "UPDATE ledger.entries SET amount = 0 WHERE false",
    "UPDATE ledger.batches SET root = '' WHERE false",
    "UPDATE ledger.outcomes SET status = 'accepted' WHERE false",
    "UPDATE ledger.quarantine SET raw = NULL WHERE false",
    "UPDATE ledger.policies SET content = '{}' WHERE false",
    "UPDATE ledger.ad_accounts SET shard = 0 WHERE false",
    "DROP TRIGGER append_only ON ledger.entries",
    "CREATE RULE r AS ON INSERT TO ledger.entries DO INSTEAD NOTHING",
    "CREATE TRIGGER t BEFORE INSERT ON ledger.shards FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change()",
    "ALTER TABLE ledger.entries OWNER TO CURRENT_USER",
    "ALTER TABLE ledger.entries DROP CONSTRAINT entries_bounds",
    "CREATE POLICY p ON ledger.entries USING (true)",
    "ALTER FUNCTION ledger.refuse_change() OWNER TO CURRENT_USER",
    "CREATE TABLE ledger.t ()",
    "CREATE TABLE public.t ()",
    "CREATE TEMPORARY TABLE t ()",
    "CREATE SCHEMA s",
    "CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql RETURN 1",
    "CREATE EXTENSION dblink",
    "CREATE PUBLICATION p FOR ALL TABLES",
    "DROP SCHEMA ledger CASCADE",
    "UPDATE public.migrations SET name = name",
    "SELECT ledger.create_shards(1024)",
)
_SERVER = (
    "SET ROLE drawdown",
    "SET SESSION AUTHORIZATION postgres",
    "SET session_replication_role = replica",
    "SELECT set_config('session_replication_role', 'replica', true)",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER ROLE CURRENT_USER CREATEROLE",
    "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
    "ALTER ROLE drawdown PASSWORD 'x'",
    "ALTER ROLE postgres PASSWORD 'x'",
    "CREATE ROLE r",
    "SELECT * FROM pg_authid",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/security-check'",
    "SELECT pg_reload_conf()",
    "SELECT pg_create_physical_replication_slot('security_check')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> current_user LIMIT 1",
    "SELECT lo_creat(-1)",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_logical_emit_message(false, 'security', 'check')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_current_xact_id()",
    "SELECT txid_current()",
    "SELECT pg_export_snapshot()",
)
_EVERYBODY = (*_CHANGES, *_SCHEMA, *_SERVER)

_CHECKPOINTS = {model.name: f"ledger.checkpoints_{model.name}" for model in READ_MODELS}
_CHECKPOINTS["allocation"] = "ledger.checkpoints_outcomes"
_FORGERIES = (
    "INSERT INTO ledger.entries DEFAULT VALUES",
    "INSERT INTO ledger.batches DEFAULT VALUES",
    "INSERT INTO ledger.outcomes DEFAULT VALUES",
    "INSERT INTO ledger.quarantine DEFAULT VALUES",
    "INSERT INTO ledger.policies VALUES ('security-check', '{}')",
    "INSERT INTO ledger.ad_accounts VALUES ('security-check', 0, 'security-check')",
    "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (0, 'spend.events', 0, 0)",
    "DELETE FROM ledger.forwarded WHERE false",
    "UPDATE ledger.shards SET epoch = epoch WHERE false",
    "UPDATE ledger.snapshots SET position = position WHERE false",
    "DELETE FROM ledger.allocators WHERE false",
    "SELECT ledger.end_sessions('')",
    "INSERT INTO ledger.operators_log (operator, action, because, details) VALUES ('x', 'x', 'x', '{}')",
)  # fmt: skip


def _below(table: str, **fields: str) -> str:
    """Return a statement that copies a row of the table to a position that no reader looks at."""
    changes = ", ".join(f"'{name}', {value}" for name, value in fields.items())
    return (
        f"INSERT INTO ledger.{table} SELECT (jsonb_populate_record(t, jsonb_build_object({changes}))).* "
        f"FROM ledger.{table} AS t LIMIT 1"
    )


_OUT_OF_THE_LEDGER = (
    _below("entries", position="0", source_event_id="gen_random_uuid()", amount="-999000000"),
    _below("entries", position="-1", source_event_id="gen_random_uuid()"),
    _below("entries", part="-1", position="2147483647000"),
    _below("batches", first_position="0", last_position="0"),
    _below("batches", first_position="-5", last_position="-1"),
    _below("outcomes", sequence="0", command_id="gen_random_uuid()"),
    _below("outcomes", sequence="-5", command_id="gen_random_uuid()"),
)
_BACKWARDS = (
    "UPDATE ledger.shards SET position = position - 1 WHERE position > 0",
    "UPDATE ledger.shards SET epoch = epoch - 1 WHERE epoch > 0",
    "UPDATE ledger.shards SET ledger_time = ledger_time - interval '1 day'",
    "UPDATE ledger.shards SET outcome_sequence = outcome_sequence - 1 WHERE outcome_sequence > 0",
    "UPDATE ledger.shards SET epoch = epoch + 2",
    "UPDATE ledger.shards SET epoch = 9223372036854775807",
)
# Values that PostgreSQL could store and nobody could read, by login.
_UNREADABLE = {
    "balance": (
        "INSERT INTO ledger.checkpoints_balance VALUES ('balance', 0, 0, 'infinity')",
        "INSERT INTO ledger.checkpoints_balance VALUES ('balance', 0, 0, '0044-03-15 BC')",
        "INSERT INTO balance.automatic_allocation VALUES ('security-check', 'infinity')",
    ),
    "incentives": (
        "INSERT INTO ledger.checkpoints_incentives VALUES ('incentives', 0, 0, '294276-12-31')",
        "INSERT INTO incentives.cash_spend VALUES ('security-check', 'infinity', 1)",
    ),
    "signals": ("INSERT INTO ledger.checkpoints_signals VALUES ('signals', 0, 0, '-infinity')",),
    "api": (
        (
            "INSERT INTO incentives.deals VALUES ('security-check', 'x', '{}', '2026-01-01', '2026-02-01', 'UTC',"
            " 'USD', 'marginal', '[]', 'infinity', now())"
        ),
    ),
    "allocation": (
        "UPDATE ledger.shards SET ledger_time = 'infinity'",
        "INSERT INTO ledger.allocators VALUES ('security-check', 'infinity')",
        "SELECT ledger.make_quarantine_part(now() + interval '26 months')",
        "SELECT ledger.make_quarantine_part('infinity')",
        'SELECT ledger.note_offset_skipped(\'x\', \'y\', \'{"shard":"\\u0000","topic":"a","offset":"1"}\')',
        "SELECT ledger.note_offset_skipped(repeat('x', 1000000), repeat('y', 1000000), '{}')",
        (
            'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", replay_shard)'
            " VALUES (0, 'spend.events', 0, 0, 3)"
        ),
        "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (0, 'finance.outcomes', 0, 0)",
        (
            'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", raw)'
            " VALUES (0, 'spend.events', 0, 0, decode(repeat('00', 100000), 'hex'))"
        ),
    ),
}


async def _not_refused(
    target: Target, login: str, statements: tuple[str, ...], states: tuple[str, ...] = (_NO_RIGHT,), mode: Mode = "try"
) -> list[str]:
    """Return the results of the statements that were not refused as they should be."""
    answers = await target.sql(login, statements, mode)
    return [
        f"{login}: {statement}: {answer.state} {answer.text}"
        for statement, answer in zip(statements, answers, strict=True)
        if answer.state not in states
    ]


async def everybody(target: Target) -> str:
    """Try statements that nobody may execute, with every login."""
    found = await asyncio.gather(*(_not_refused(target, login, _EVERYBODY) for login in _LOGINS))
    came = [each for of_login in found for each in of_login]
    require(not came, f"{len(came)} of {len(_EVERYBODY) * len(_LOGINS)} were not refused: {came[:12]}")
    return f"{len(_EVERYBODY)} statements by {len(_LOGINS)} logins, all refused"


async def others_tables(target: Target) -> str:
    """Write and lock other services' tables, with every login."""
    came = []
    for login in _LOGINS:
        locks = [
            statement
            for owner, table in _CHECKPOINTS.items()
            if owner != login
            for statement in (
                f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
                f"UPDATE {table} SET position = 0 WHERE false",
            )
        ]
        tables = () if login == "allocation" else _FORGERIES
        models = [
            f"UPDATE {table} SET {column} = {column} WHERE false" for owner, table, column in _MODELS if owner != login
        ]
        came += await _not_refused(target, login, (*locks, *tables, *models))
    require(not came, f"{len(came)} were not refused: {came[:12]}")
    return "checkpoints, the ledger and the read models are their owners' alone"


_MODELS = (
    ("balance", "balance.pockets", "amount"),
    ("balance", "balance.budgets", "amount"),
    ("incentives", "incentives.cash_spend", "amount"),
    ("signals", "signals.latest", "position"),
    ("api", "incentives.deals", "slabs"),
)


async def out_of_bounds(target: Target) -> str:
    """As the writer, insert rows where no audit looks, and move the lease back."""
    tenant = await open_tenant(target, 0)
    await still_charges(target, tenant)
    came = await _not_refused(target, "allocation", (*_OUT_OF_THE_LEDGER, *_BACKWARDS), (_NO_RIGHT, _OUT_OF_BOUNDS))
    came += await _not_refused(target, "allocation", (await _forged_quarantine(target),), (_OUT_OF_BOUNDS,))
    require(not came, came)
    return f"{len(_OUT_OF_THE_LEDGER) + len(_BACKWARDS) + 1} rows and moves, all refused"


async def unreadable(target: Target) -> str:
    """As each service, write impossible times and unreadable values."""
    came = []
    for login, statements in _UNREADABLE.items():
        came += await _not_refused(target, login, statements, (_OUT_OF_BOUNDS,))
    require(not came, came)
    return f"{sum(map(len, _UNREADABLE.values()))} rows and calls, all refused"


async def _forged_quarantine(target: Target) -> str:
    """Return a statement that inserts a forged row into quarantine, in full because the writer may not read it."""
    columns = await target.rows(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'ledger' AND table_name = 'quarantine'"
        " AND is_nullable = 'NO' ORDER BY ordinal_position"
    )
    values = {"shard": "0", "sequence": "-5", "partition": "0", "offset": "0", "recorded_at": "now()"}
    names = [name for (name,) in columns]
    shown = ", ".join(f'"{name}"' for name in names)
    return f"INSERT INTO ledger.quarantine ({shown}) VALUES ({', '.join(values.get(name, _A_TEXT) for name in names)})"


async def other_databases(target: Target) -> str:
    """Connect to the databases that are not ours, with every login."""
    came = []
    for login in _LOGINS:
        for answer in await target.sql(login, ("postgres", "template1"), "connect"):
            came += [] if answer.state == _NO_RIGHT else [f"{login}: {answer.state} {answer.text}"]
    require(not came, came)
    return "closed to all"


async def other_logins(target: Target) -> str:
    """From a service's container, log in as others: with its own password, without one, with a common one."""
    others = ("postgres", "drawdown", *(f"drawdown_{name}" for name in ("balance", "api", "auditor")))
    came = [
        answer.text for answer in await target.sql("allocation", others, "log in") if answer.state not in _NO_PASSWORD
    ]
    require(not came, came)
    return f"{len(others)} logins by three passwords, all refused"


async def too_many_connections(target: Target) -> str:
    """Take all connections that the least login can get, and connect as another login meanwhile."""
    came: list[str] = []
    for login in ("audit", "incentives"):
        (answer,) = await target.sql(login, (str(_CONNECTIONS),), "flood")
        opened = _opened(answer)
        if answer.state != _NO_ROOM or "for role" not in answer.text or opened > _FEW:
            came.append(f"{login} opened {opened}: {answer.text}")
    require(not came, came)
    return "each is stopped by a limit of its own"


def _opened(answer: Answer) -> int:
    return int(answer.rows[0][0])


async def settings_of_its_own(target: Target) -> str:
    """As a follower, leave a setting that outlives the session; the audit must find it."""
    await target.sql("incentives", ("ALTER ROLE CURRENT_USER SET work_mem = '64kB'",), "keep")
    try:
        said = await target.compose("run", "--rm", "audit", "verify", expected=(0, 1))
    finally:
        await target.sql("incentives", ("ALTER ROLE CURRENT_USER RESET ALL",), "keep")
    require("drawdown_incentives" in said, f"`audit verify` does not see it: {said[-300:]}")
    return "`audit verify` names the role"


async def verify(target: Target) -> str:
    """Run the audit after all attacks."""
    try:
        said = await target.compose("run", "--rm", "audit", "verify")
    except NoTargetError as error:
        require(held=False, came=error)
    require("No difference" in said, said[-300:])
    return "No difference"


CHECKS = (
    Check("database", "everybody", f"{len(_EVERYBODY)} statements that no service may say", everybody),
    Check("database", "others", "what is another service's", others_tables),
    Check("database", "bounds", "as the writer: positions below 1, the lease moved back", out_of_bounds),
    Check("database", "unreadable", "times that no clock shows, notes and records that nobody can read", unreadable),
    Check("database", "databases", "databases that are not ours", other_databases),
    Check("database", "logins", "others' logins", other_logins),
    Check("database", "connections", "all connections that there are", too_many_connections),
    Check(
        "database",
        "settings",
        "a login's own settings, which outlive its sessions",
        settings_of_its_own,
        is_quick=False,
    ),
)
LAST = (Check("database", "audit", "what the audit says of all that was tried", verify),)
