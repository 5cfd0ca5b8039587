"""The application around MLflow's: a fake one stands in for it, as only what passes through matters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.tracking.ui_app import PREFERENCES, Message, Receive, Scope, Send, without_assistant

PAGE = b"<!doctype html><html><head><title>MLflow</title></head></html>"


async def mlflow_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the page, in two parts, as MLflow's application does."""
    conditional = [name for name, _ in scope["headers"] if name.startswith(b"if-")]
    headers = [(b"content-type", b"text/html"), (b"etag", b"1"), (b"content-length", str(len(PAGE)).encode())]
    await send({"type": "http.response.start", "status": 304 if conditional else 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE[:20], "more_body": True})
    await send({"type": "http.response.body", "body": PAGE[20:]})


def ask(path: str, kind: str = "http", headers: Any = ()) -> tuple[Message, bytes]:
    """Return the first message of the answer, and its whole body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": list(headers)}
    asyncio.run(without_assistant(mlflow_app)(scope, receive, send))
    return sent[0], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/config",
        "/ajax-api/3.0/mlflow/assistant/sessions/1/stream",
        "/api/3.0/mlflow/assistant",
    ],
)
def test_the_assistant_is_refused_with_the_way_to_have_it(path: str) -> None:
    start, body = ask(path)
    assert start["status"] == 403
    assert b"harness ui --assistant" in body
    assert ask(path, kind="websocket")[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    "path", ["/ajax-api/2.0/mlflow/runs/search", "/static-files/assistant.js", "/health"]
)
def test_everything_else_is_mlflows_own(path: str) -> None:
    start, body = ask(path)
    assert (start["status"], body) == (200, PAGE)


def test_the_first_page_sets_the_preferences_before_any_script_of_its_own() -> None:
    start, body = ask("/", headers=[(b"if-none-match", b"1"), (b"host", b"127.0.0.1")])
    headers = dict(start["headers"])
    assert start["status"] == 200  # a page that the browser kept from elsewhere is not shown
    assert body == PAGE.replace(b"<head>", b"<head>" + PREFERENCES)
    assert int(headers[b"content-length"]) == len(body)
    assert b"etag" not in headers
    assert headers[b"cache-control"] == b"no-store"


def test_every_route_of_mlflows_assistant_is_one_of_those_refused() -> None:
    from mlflow.server.assistant.api import assistant_router

    from harness.tracking.ui_app import ASSISTANT

    paths = [route.path for route in assistant_router.routes]  # type: ignore[attr-defined]
    assert paths
    assert all(ASSISTANT.search(path) for path in paths)
