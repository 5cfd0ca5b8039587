"""The web application that `harness ui` serves: MLflow's own, without its assistant.

`mlflow server --app-name harness` finds :func:`create_app` through the entry point in `pyproject.toml`; see
`ui.py`, which starts that server.

MLflow 3.17's assistant runs shell commands as the owner of the server for every client on this host, without
a password, and no setting turns it off. So its routes are refused unless `harness ui --assistant` asks for
them. MLflow also opens the assistant's panel over a quarter of the first page, and its pages in the mode for
language models. Both are preferences that the browser stores, so a script in the first page sets them.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WITH_ASSISTANT = "HARNESS_UI_ASSISTANT"  # environment variable: "1" serves MLflow's assistant too
ENDS_WITH_STDIN = "HARNESS_UI_ENDS_WITH_STDIN"  # environment variable: "1" ends the server when stdin does

ASSISTANT = re.compile(r"/mlflow/assistant(/|$)")
REFUSAL = (
    b"The assistant runs commands on this machine, so it is off: start `harness ui --assistant` for it.\n"
)
OF_THE_FILE = {
    b"content-length",
    b"etag",
    b"last-modified",
    b"cache-control",
}  # true of the unchanged page only
# The keys are those of MLflow 3.17's `useLocalStorage`: name, "_v", version.
PREFERENCES = b"""<script>
try {
  if (!localStorage.getItem("mlflow.workflowType_v1"))
    localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
} catch (error) {}
</script><style>[data-assistant-ui] { display: none !important; }</style>"""


def create_app() -> App:
    """Return MLflow's ASGI application, without its assistant unless the environment asks for it."""
    from mlflow.server.fastapi_app import app

    if os.environ.get(ENDS_WITH_STDIN) == "1":
        threading.Thread(target=_end_with_stdin, name="end-with-stdin", daemon=True).start()
    return app if os.environ.get(WITH_ASSISTANT) == "1" else without_assistant(app)


def without_assistant(app: App) -> App:
    """Return `app` without the assistant's routes, and with :data:`PREFERENCES` in its first page."""

    async def reduced(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if ASSISTANT.search(path):
            await _refuse(scope, send)
        elif path == "/" and scope["type"] == "http":
            await _serve_first_page(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    return reduced


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSAL)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": REFUSAL})


async def _serve_first_page(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the first page with the preferences at the start of its head, before any script of MLflow's."""
    start: Message = {}
    parts: list[bytes] = []

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = b"".join(parts)
        body = body.replace(b"<head>", b"<head>" + PREFERENCES, 1)
        headers = [(name, value) for name, value in start["headers"] if name.lower() not in OF_THE_FILE]
        length = (b"content-length", str(len(body)).encode())
        # The browser must not cache it: another version, or one with the assistant, serves another page.
        start["headers"] = [*headers, length, (b"cache-control", b"no-store")]
        await send(start)
        await send({"type": "http.response.body", "body": body})

    # Without conditional headers: the answer 304 would show the page that the browser has cached.
    kept = [
        (name, value) for name, value in scope["headers"] if not name.lower().startswith((b"if-", b"range"))
    ]
    await app({**scope, "headers": kept}, receive, collect)


def _end_with_stdin() -> None:
    """End this server when stdin closes, which happens when the process that started it ends."""
    while sys.stdin.buffer.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
