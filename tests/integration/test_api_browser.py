"""A real browser on this machine with a page of another site, against an API without tokens. Skipped if there is no
headless Chromium. test_pages.py and test_api_limits.py send the same requests by hand.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer

from shared.runtime.kafka import FINANCE_COMMANDS
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics
from tests.integration.api import command
from tests.integration.browser import BROWSER, Tab, browsing
from tests.integration.test_api_service import serving
from tests.integration.tokens import issuer
from tests.servers import running_system

SECONDS = 120
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no headless Chromium here")

# The requests that a page can send with and without a preflight: to the machine's own address, and to a name that leads
# there.
PAGE = """<!doctype html><title>evil</title>
<iframe name="sink"></iframe>
<script>
const command = () => JSON.stringify({...COMMAND, command_id: crypto.randomUUID ? crypto.randomUUID() :
    "10000000-1000-4000-8000-" + String(Math.floor(Math.random() * 1e12)).padStart(12, "0")})
async function ask(url, options) {
  try { const answer = await fetch(url, options); return answer.type + " " + answer.status }
  catch (error) { return "refused" }
}
function form(url) {
  const made = document.createElement("form"), field = document.createElement("input")
  Object.assign(made, {action: url, method: "POST", enctype: "text/plain", target: "sink"})
  const [before, after] = [command().slice(0, -1) + ',"x":"', '"}']
  Object.assign(field, {name: before, value: after})
  made.append(field)
  document.body.append(made)
  const loaded = new Promise(done => {
    document.querySelector("iframe").onload = () => done("answered")
    setTimeout(() => done("not answered"), 3000)
  })
  made.submit()
  return loaded
}
async function run() {
  const found = {}
  for (const host of HOSTS) {
    const url = `http://${host}/v1/commands`, plain = {"content-type": "text/plain"}
    found[`${host} text`] = await ask(url, {method: "POST", mode: "no-cors", headers: plain, body: command()})
    found[`${host} no type`] = await ask(url, {method: "POST", mode: "no-cors", body: new Blob([command()])})
    const json = {"content-type": "application/json"}
    found[`${host} json`] = await ask(url, {method: "POST", headers: json, body: command()})
    found[`${host} read`] = await ask(`http://${host}/v1/business-centers`, {})
    found[`${host} beacon`] = String(navigator.sendBeacon(url, command()))
    found[`${host} form`] = await form(url)
  }
  await fetch("/found", {method: "POST", body: JSON.stringify(found)})
}
run()
</script>"""


class Page:
    """A page that is served to every client, and what it reports to its server."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self.found: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        """Serve the page while the block runs, and yield the port."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: ([0-9]+)", head)
        if length:
            self.found.set_result(json.loads(await reader.readexactly(int(length[1]))))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(self._text) + self._text)
        await writer.drain()
        writer.close()


async def test_a_page_of_another_host_can_neither_write_nor_read(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.commands.publishing.DECISION_TIMEOUT_SECONDS", 0.2)
    await ensure_topics(settings)
    consumer = AIOKafkaConsumer(FINANCE_COMMANDS, bootstrap_servers=settings.kafka_bootstrap_servers)
    await consumer.start()
    await consumer.seek_to_beginning()
    hosts = [f"{name}:{settings.http_port}" for name in ("127.0.0.1", "localhost", "rebind.example")]
    sent = command("deposit_cash", "of-the-page", amount="1")
    text = PAGE.replace("COMMAND", json.dumps(sent)).replace("HOSTS", json.dumps(hosts))
    try:
        page = Page(text)
        async with serving(settings) as client, page.served() as port:
            async with asyncio.timeout(SECONDS), browsing(tmp_path / "profile") as tab:
                await tab.open(f"http://evil.example:{port}/")
                found = await page.found
            metrics = (await client.get("/metrics")).text
            assert {what: answer for what, answer in found.items() if answer.startswith(("basic", "cors"))} == {}
            assert len(found) == 18
            # An authorised client gets through: the first command on the topic is the one that is sent now.
            ours = command("deposit_cash", "ours", amount="1", command_id=str(uuid4()))
            answering = asyncio.create_task(client.post("/v1/commands", json=ours))
            first = await consumer.getone()
            answering.cancel()
            assert first.key == b"ours"
            refused = re.findall(r'requests_total{method="POST",route="refused",status="(403|421)"} ([0-9.]+)', metrics)
            assert {status for status, _ in refused} == {"403", "421"}
            assert sum(float(count) for _, count in refused) >= 12  # By three ways without a preflight, and by forms.
    finally:
        await consumer.stop()


# --- The page that the API serves itself ---


async def _execute(tab: Tab, path: str, body: str | None = None, **parameters: str) -> str:
    """Execute a call in the page as a person does, and return the answer that the page shows."""
    opened = ".opblock.is-open"
    await tab.click(".opblock-summary-control", path)
    await tab.click(f"{opened} .try-out__btn", "Try it out")
    for name, value in parameters.items():
        await tab.fill(f"{opened} [data-param-name={name}] input", value)
    if body is not None:
        await tab.fill(f"{opened} .body-param__text", body)
    await tab.click(f"{opened} .execute")
    shown = await tab.text(f"{opened} .live-responses-table .response")
    await tab.click(f"{opened} .opblock-summary-control")
    return shown


async def test_a_command_can_be_tried_from_the_page_without_other_hosts(tmp_path: Path) -> None:
    sent = command("open_business_center", "of-the-page", currency="USD", time_zone="UTC")
    async with running_system(shards=1) as system, asyncio.timeout(SECONDS), browsing(tmp_path / "profile") as tab:
        await tab.open(system.url)
        assert "Kafka topics" in await tab.text(".info", "AsyncAPI")
        assert '"status": "accepted"' in await _execute(tab, "/v1/commands", json.dumps(sent))
        read = await _execute(tab, "/v1/business-centers/{business_center_id}", business_center_id="of-the-page")
        assert read.startswith("200")
        assert tab.problems == []
        # A write without a body: a page must still declare that it is JSON.
        assert '"not_found"' in await _execute(tab, "/v1/quarantine/{record_id}/replay", record_id="0-1")
        [problem] = tab.problems
        assert "404" in problem
        assert await tab.evaluate("location.pathname") == "/docs"
        elsewhere = [url for url in tab.requested if not url.startswith((f"{system.url}/", "data:"))]
        assert elsewhere == []
        assert f"{system.url}/docs/swagger-ui-bundle.js" in tab.requested


async def test_a_token_entered_in_the_page_is_sent_with_each_call(settings: Settings, tmp_path: Path) -> None:
    issues = issuer(tmp_path / "keys")
    wanting = settings.model_copy(update={"api_authentication": "tokens", "api_keys_file": issues.keys_file})
    async with serving(wanting), asyncio.timeout(SECONDS), browsing(tmp_path / "profile") as tab:
        await tab.open(f"http://127.0.0.1:{settings.http_port}/docs")
        assert (await _execute(tab, "/v1/ledger")).startswith("401")
        await tab.click(".btn.authorize")
        await tab.fill(".auth-container input", issues.token())
        await tab.click(".auth-container .authorize")
        await tab.click(".auth-container .btn-done")
        assert (await _execute(tab, "/v1/business-centers")).startswith("200")
        [problem] = tab.problems
        assert "401" in problem
