"""A real browser on this machine, and a page of somebody else in it, where no tokens are wanted.

Skipped where there is no headless Chromium; the same requests are sent by hand in test_pages.py and test_api_limits.py.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer

from shared.runtime.kafka import FINANCE_COMMANDS
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics
from tests.integration.api import command
from tests.integration.test_api_service import serving

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
SECONDS = 60

# What a page can do without asking first, and with; to the machine's own address and to a name that leads there.
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
    """A page that is served to whoever asks, and what it reports to where it came from."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self.found: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        """Yields the port."""
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


@contextlib.asynccontextmanager
async def _browsing(url: str, profile: Path) -> AsyncIterator[None]:
    """A browser that has opened the page, for which every name that ends in `.example` is this machine's."""
    assert BROWSER is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}")
    command = (BROWSER, *options, "--host-resolver-rules=MAP *.example 127.0.0.1", url)
    quiet = asyncio.subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()


@pytest.mark.skipif(BROWSER is None, reason="there is no headless Chromium here")
async def test_a_page_of_another_name_gets_nothing_done_and_reads_nothing(
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
            async with _browsing(f"http://evil.example:{port}/", tmp_path / "profile"), asyncio.timeout(SECONDS):
                found = await page.found
            metrics = (await client.get("/metrics")).text
            assert {what: answer for what, answer in found.items() if answer.startswith(("basic", "cors"))} == {}
            assert len(found) == 18
            # Whoever may is heard: the only command that comes is the one that is sent now.
            ours = command("deposit_cash", "ours", amount="1", command_id=str(uuid4()))
            answering = asyncio.create_task(client.post("/v1/commands", json=ours))
            first = await consumer.getone()
            answering.cancel()
            assert first.key == b"ours"
            refused = re.findall(r'requests_total{method="POST",route="refused",status="(403|421)"} ([0-9.]+)', metrics)
            assert {status for status, _ in refused} == {"403", "421"}
            assert sum(float(count) for _, count in refused) >= 12  # Of three ways that a page need not ask, and forms.
    finally:
        await consumer.stop()
