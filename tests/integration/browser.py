"""A headless Chromium, and a page in it that tests use like people.

It is driven through its remote control (the Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol)
over a pipe: one JSON object a message, each ended by a zero byte.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1600", "--remote-debugging-pipe")
# The events that a browser reports about a page: requests, script errors, console messages, and violations of the
# page's policy.
_TOLD = ("Network", "Runtime", "Log")
_MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024

# Find the first element of a selector that contains this text. The page has until the test's time limit to show it.
_ELEMENT = """new Promise(done => {
  const look = () => {
    const found = [...document.querySelectorAll(%s)].find(each => each.textContent.includes(%s))
    if (found) { found.scrollIntoView(); done(%s) } else requestAnimationFrame(look)
  }
  look()
})"""


@dataclass
class Tab:
    """A page of the browser.

    Args:
        requested: the URLs that it has requested.
        problems: errors of its scripts, errors and warnings in its console, error answers, and violations of its
        policy.

    """

    process: asyncio.subprocess.Process
    session: str | None = None
    requested: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=count)
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send the browser a command and return its result."""
        assert self.process.stdin is not None
        id_ = next(self._ids)
        message = {"id": id_, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        answering = self._answers[id_] = asyncio.get_running_loop().create_future()
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        answer = await answering
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    async def listen(self) -> None:
        """Receive the browser's messages until it ends."""
        assert self.process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                said = json.loads((await self.process.stdout.readuntil(b"\0"))[:-1])
                if "id" in said:
                    self._answers.pop(said["id"]).set_result(said)
                else:
                    self._note(said["method"], said["params"])

    def _note(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Network.requestWillBeSent":
                self.requested.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(told))
            case "Log.entryAdded" if told["entry"]["level"] in ("warning", "error"):
                self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if told["type"] in ("warning", "error", "assert"):
                self.problems.append(" ".join(str(each.get("value")) for each in told["args"]))

    async def attach(self) -> None:
        """Open a page, and subscribe to its events."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self.session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in _TOLD:
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Open a URL."""
        assert "errorText" not in await self.call("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """Return the result of a script in the page, once it is there."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def text(self, selector: str, says: str = "") -> str:
        """Wait for an element that contains this text, and return its whole text."""
        return str(await self._element(selector, says, "found.textContent"))

    async def click(self, selector: str, says: str = "") -> None:
        """Wait for an element that contains this text, and click it."""
        await self._element(selector, says, "void found.click()")

    async def fill(self, selector: str, text: str) -> None:
        """Wait for a field, replace its content, and leave it."""
        await self._element(selector, "", "(found.focus(), void found.select())")
        await self.call("Input.insertText", text=text)
        await self.evaluate("document.activeElement.blur()")

    async def _element(self, selector: str, says: str, result: str) -> Any:
        return await self.evaluate(_ELEMENT % (json.dumps(selector), json.dumps(says), result))


@contextlib.asynccontextmanager
async def browsing(profile: Path) -> AsyncIterator[Tab]:
    """Yield a browser with a page. For it, every name that ends in `.example` is this machine's."""
    assert BROWSER is not None
    options = (*_OPTIONS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP *.example 127.0.0.1")
    # The browser reads commands at file descriptor 3, and writes at 4.
    shell = ("/bin/sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", BROWSER, *options)
    process = await asyncio.create_subprocess_exec(
        *shell,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        limit=_MESSAGE_LIMIT_BYTES,
    )
    tab = Tab(process)
    listening = asyncio.create_task(tab.listen())
    try:
        await tab.attach()
        yield tab
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await listening
        await process.wait()
