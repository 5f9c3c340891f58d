"""The commands, and how each ends."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import asyncpg
import httpx
import typer
from aiokafka.errors import KafkaError

from drawdown.api_client import RequestRefusedError
from drawdown.command_line.quarantine import list_records, replay_records
from drawdown.local.embedded import EmbeddedServerError
from drawdown.local.spend_files import UnreadableFileError
from drawdown.serving import run_until_signalled, serve
from shared.contracts.commands import Role
from shared.runtime.errors import CannotGoOnError
from shared.runtime.logging import configure_logging
from shared.runtime.read_models import READ_MODELS
from shared.runtime.settings import Settings, load_settings

# These errors end a command with one line instead of a stack trace.
_EXPECTED = (
    *(EmbeddedServerError, CannotGoOnError, UnreadableFileError, RequestRefusedError),
    *(ValueError, OSError, asyncpg.PostgresError, KafkaError, httpx.HTTPError),
)

app = typer.Typer(
    help="An event-sourced ledger of ad spend.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
audit = typer.Typer(
    help="Prove that the ledger is complete, and that the figures follow from it.", no_args_is_help=True
)
quarantine = typer.Typer(help="Records that could not be decided or charged.", no_args_is_help=True)
spend = typer.Typer(help="Files of ad spend.", no_args_is_help=True)
offsets = typer.Typer(help="The Kafka offsets that the ledger has reached.", no_args_is_help=True)
token = typer.Typer(help="Bearer tokens, for deployments without an identity provider.", no_args_is_help=True)
app.add_typer(audit, name="audit")
app.add_typer(quarantine, name="quarantine")
app.add_typer(spend, name="spend")
app.add_typer(offsets, name="offsets")
app.add_typer(token, name="token")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Since = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="An earlier --json report or manifest: its roots must still hold."),
]
KeepTimes = Annotated[
    bool, typer.Option("--keep-times", help="Do not shift the times; by default the last event is now.")
]

Rate = Annotated[int, typer.Option(min=1, max=100_000, help="Spends a second from the generator.")]


def main() -> None:
    """Run the command given by the arguments."""
    app()


@app.command()
def allocation() -> None:
    """Decide which pocket pays for each spend, and write the ledger. No other service writes it."""
    serve("allocation")


def _add_follower(name: str, summary: str) -> None:
    @app.command(name, help=summary)
    def follower() -> None:
        serve(name)


for read_model in READ_MODELS:
    _add_follower(read_model.name, read_model.summary)


@app.command()
def api() -> None:
    """Serve HTTP."""
    serve("api")


@app.command()
def run(
    traffic: Annotated[Literal["on", "off"], typer.Option(help="Whether the generator publishes ad spend.")] = "on",
    rate: Rate = 500,
    spend: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Ad spend from a file.")] = None,
    keep_times: KeepTimes = False,
) -> None:
    """Run everything on this machine."""
    from drawdown.local.supervisor import Options, supervise

    options = Options(traffic=traffic == "on", rate=rate, spend=spend, keep_times=keep_times)
    _run(supervise(load_settings(), options))


@app.command()
def traffic(rate: Rate = 500) -> None:
    """Send generated ad spend to a running system."""
    from drawdown.local.traffic_service import generate

    run_until_signalled("traffic", partial(generate, rate=rate))


@app.command()
def migrate() -> None:
    """Migrate the database to the schema of this version, and create missing topics."""
    from drawdown.local.system import prepare

    _run(prepare(_settings("migrate")))


@audit.command("replay")
def audit_replay(as_json: AsJson = False, since: Since = None) -> None:
    """Replay every decision, fold the ledger, and compare with the read models. Exits with 1 if anything differs."""
    from services.auditor.cli import replay

    _run(replay(_settings("auditor"), as_json=as_json, since=since))


@audit.command("verify")
def audit_verify(
    as_json: AsJson = False,
    since: Since = None,
    chain_only: Annotated[bool, typer.Option("--chain-only", help="Decide nothing again: much faster.")] = False,
) -> None:
    """Check positions, hashes, roots, guards and all rows of the ledger, and replay it. Exits like replay."""
    from services.auditor.cli import verify

    _run(verify(_settings("auditor"), as_json=as_json, since=since, chain_only=chain_only))


@audit.command("export")
def audit_export(
    out: Annotated[Path, typer.Option(file_okay=False, help="A new or empty folder.")],
    format_: Annotated[
        Literal["ndjson", "csv", "ndjson.gz", "csv.gz"], typer.Option("--format", help="The format of the files.")
    ] = "ndjson",
    shard: Annotated[int | None, typer.Option(min=0, help="Only this shard.")] = None,
    first: Annotated[int, typer.Option("--from", min=1, help="The first position.")] = 1,
    last: Annotated[int | None, typer.Option("--to", min=1, help="The last position.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write entries, batches with their roots, and a manifest, so that they can be checked elsewhere."""
    from services.auditor.cli import export
    from services.auditor.exporting import Selection

    selection = Selection(out, format_, shard, first, last)
    _run(export(_settings("auditor"), selection, as_json=as_json))


@quarantine.command("list")
def quarantine_list(
    reason: Annotated[str | None, typer.Option(help="Only records with this reason.")] = None,
) -> None:
    """Print the quarantined records, one line of JSON each. `raw` is base64."""
    _run(list_records(_settings("quarantine"), reason))


@quarantine.command("replay")
def quarantine_replay(
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of the records.")] = None,
    reason: Annotated[str | None, typer.Option(help="All records with this reason that were not replayed yet.")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also too_large, malformed and invalid records, and those that failed ten times; needs an admin's"
            " token for all.",
        ),
    ] = False,
) -> None:
    """Send quarantined records back, to be decided again: the given ids, or all records with a reason."""
    if bool(ids) == bool(reason):
        raise typer.BadParameter("give either ids or --reason")
    _run(replay_records(_settings("quarantine"), ids or [], reason, force=force))


@quarantine.command("drop")
def quarantine_drop(
    month: Annotated[str, typer.Argument(help="A month that is over, such as 2026-08 (UTC).")],
    because: Annotated[str, typer.Option(help="The reason, which the operators' log keeps.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop the quarantine of a whole month. Needs the database owner's login; the operators' log keeps a summary."""
    from drawdown.command_line.quarantine_dropping import drop_month

    def confirm(told: str) -> bool:
        print(told)
        return yes or typer.confirm("Drop it?")

    _run(drop_month(_settings("quarantine"), month, because, confirm))


@spend.command("send")
def spend_send(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, CSV or an iPinYou log.")],
    keep_times: KeepTimes = False,
) -> None:
    """Send a file of ad spend, with its times shifted so that its last event is now, and report the outcome.

    Exits with 0 if every row was decided, that is charged or quarantined, and with 1 otherwise.
    """
    from drawdown.command_line.spend_command import send_file

    _run(send_file(_settings("spend"), file, keep_times=keep_times))


@offsets.command("adopt")
def offsets_adopt() -> None:
    """Accept that the present Kafka cluster's offsets start again, after a broker was replaced on purpose."""
    from services.allocation.operating.offsets import adopt

    _run(adopt(_settings("offsets")))


@offsets.command("skip")
def offsets_skip(
    shard: Annotated[int, typer.Argument(min=0, help="The shard that has stopped.")],
    topic: Annotated[str, typer.Argument(help="spend.events or finance.commands.")],
    offset: Annotated[int, typer.Argument(min=0, help="The offset that the ledger needs next.")],
    because: Annotated[str, typer.Option(help="The reason, which the operators' log keeps.")],
) -> None:
    """Skip one record that stops a shard. It is quarantined as `skipped`, and the operators' log keeps the reason."""
    from services.allocation.operating.skipping import skip

    _run(skip(_settings("offsets"), shard, topic, offset, because))


@offsets.command("log")
def offsets_log() -> None:
    """Print what operators did by hand, one line of JSON each: skipped records and dropped months of quarantine."""
    from services.allocation.operating.offsets import print_log

    _run(print_log(_settings("offsets")))


@app.command()
def credentials(
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder that only its owner can enter.")
    ],
    traffic: Annotated[Literal["on", "off"], typer.Option(help="Whether the generator needs a token.")] = "on",
) -> None:
    """Create the passwords, certificates and keys that a deployment of containers still lacks."""
    from drawdown.deployment.credentials import make_credentials
    from drawdown.local.traffic import CAST

    centers = [center.id for center in CAST] if traffic == "on" else []
    _run(lambda: make_credentials(load_settings(), directory, centers_of_traffic=centers))


@app.command("kafka-access")
def kafka_access(
    passwords: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder with a file for each user.")
    ],
) -> None:
    """Give Kafka's users their passwords, rights and quotas, over a listener that allows everything."""
    from drawdown.deployment.kafka_access import allow

    _run(allow(_settings("kafka-access"), passwords))


@token.command("new-key")
def token_new_key(directory: Annotated[Path, typer.Argument(file_okay=False, help="The folder to write to.")]) -> None:
    """Create a signing key (signing-key.pem, secret) and the key set for DRAWDOWN_API_KEYS_FILE (keys.json)."""
    from drawdown.deployment.tokens import new_key

    _run(lambda: new_key(directory))


@token.command("issue")
def token_issue(
    signing_key: Annotated[Path, typer.Option("--key", exists=True, dir_okay=False, help="The signing-key.pem.")],
    subject: Annotated[str, typer.Option(help="The actor's id in the ledger.")],
    role: Annotated[Role, typer.Option(help="The actor's role, which decides what they may do.")],
    business_centers: Annotated[
        list[str],
        typer.Option(
            "--business-center", help="A Business Center to which it gives access; may be repeated; '*' is all."
        ),
    ],
    minutes: Annotated[int, typer.Option(min=1, help="The time until it expires.")] = 60,
) -> None:
    """Print a token signed with a key of `new-key`. Prints on stderr its id, with which it can be withdrawn."""
    from drawdown.deployment.tokens import id_of, issue

    def print_token() -> None:
        issued = issue(load_settings(), signing_key, subject, role, business_centers, minutes=minutes)
        print(issued)
        print(f"jti {id_of(issued)}", file=sys.stderr)

    _run(print_token)


def _settings(name: str) -> Settings:
    settings = load_settings()
    configure_logging(settings, name)
    return settings


def _run(command: Coroutine[Any, Any, int | None] | Callable[[], None]) -> None:
    """Run a command and exit with its result. An expected error prints one line and exits with 1."""
    try:
        code = command() if callable(command) else asyncio.run(command)
    except BrokenPipeError:  # The reader of our output has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except _EXPECTED as error:
        print(f"drawdown: {_told(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code or 0)


def _told(error: Exception) -> str:
    if isinstance(error, httpx.TransportError):
        address = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
        problem = str(error) or type(error).__name__
        advice = "is it running, and are DRAWDOWN_HTTP_HOST and DRAWDOWN_HTTP_PORT its address?"
        return f"the API at {address} does not answer ({problem}): {advice}"
    return str(error)
