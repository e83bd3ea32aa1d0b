"""WebSockets that are refused before they open."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from askii_middleware import Budget
from askii_middleware.keys import hash_secret

from .support.servers import serving
from .support.sockets import (
    BROKE,
    LIVE_PATH,
    SECRET,
    Provider,
    booked,
    mini_hold,
    socket_to,
    until_closed,
)


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
@pytest.mark.parametrize("path", ["/v1/realtime?model=big", "/v1/responses", LIVE_PATH])
async def test_nobody_without_money_gets_in(path: str, ws: str) -> None:
    pytest.importorskip(ws.partition("-")[0])
    provider = Provider()
    async with booked(budgets=BROKE) as book, serving(book.around(provider), ws=ws) as url:
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, path):
                pass
    answer = caught.value.response
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/json"
    error = json.loads(answer.body or b"")["error"]
    assert "budget" in json.dumps(error)
    assert provider.scopes == []
    assert book.metric("askii_refusals_total", scope_kind="tenant", reason="spent") == 1


async def test_what_runs_already_may_leave_too_little_for_another_socket() -> None:
    budgets = [Budget(scope="tenant=*", limit_usd=f"{1.5 * mini_hold() / 1e9:.9f}")]
    async with (
        booked(budgets=budgets) as book,
        serving(book.around(Provider())) as url,
        socket_to(url, "/v1/realtime?model=mini"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, "/v1/realtime?model=mini"):
                pass
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/v1/realtime?model=nobody", {}, 400),
        ("/v1/realtime?model=a&model=b", {}, 400),
        ("/v1/realtime?model=big", {"identify": lambda _scope: None}, 401),
    ],
)
async def test_a_socket_that_cannot_be_metered_is_refused(path: str, options: Any, status: int) -> None:
    async with booked() as book, serving(book.around(Provider(), **options)) as url:
        with pytest.raises(InvalidStatus) as caught:
            async with socket_to(url, path):
                pass
        assert caught.value.response.status_code == status
        assert await book.nothing_happened()


async def test_a_server_without_denial_responses_closes_instead() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "query_string": b"model=big", "headers": []}
    async with booked(budgets=BROKE) as book:
        await book.around(Provider())(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "budget_exceeded"}]


async def test_sockets_of_other_paths_pass_where_they_may() -> None:
    for unmetered, status in (("allow", None), ("deny", 403)):
        async with booked() as book, serving(book.around(Provider(), unmetered=unmetered)) as url:
            if status is None:
                async with socket_to(url, "/v1/events"):
                    pass
            else:
                with pytest.raises(InvalidStatus) as caught:
                    async with socket_to(url, "/v1/events"):
                        pass
                assert caught.value.response.status_code == status


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/realtime?model=mini", {"additional_headers": {"authorization": f"Bearer {SECRET}"}}),
        ("/v1/realtime?model=mini", {"subprotocols": ["realtime", f"openai-insecure-api-key.{SECRET}"]}),
        (f"{LIVE_PATH}?key={SECRET}", {}),
    ],
)
async def test_a_key_of_ours_opens_wherever_clients_can_put_it(path: str, options: Any) -> None:
    keys = [{"id": "key_1", "sha256": hash_secret(SECRET), "tenant": "acme"}]
    async with booked() as book:
        app = book.around(Provider(), keys=keys, identity={"sources": ["key"]})
        async with serving(app) as url:
            async with socket_to(url, path, **options):
                pass
            wrong = path.replace("kkk", "xxx")
            others = json.loads(json.dumps(options).replace("kkk", "xxx"))
            with pytest.raises(InvalidStatus) as caught:
                async with socket_to(url, wrong, **others):
                    pass
            assert caught.value.response.status_code == 401


async def test_a_key_opens_no_other_models_than_its_own() -> None:
    keys = [{"id": "key_1", "sha256": hash_secret(SECRET), "tenant": "acme", "models": ["mini"]}]
    headers = {"authorization": f"Bearer {SECRET}"}
    async with booked() as book:
        app = book.around(Provider(), keys=keys, identity={"sources": ["key"]})
        async with serving(app) as url:
            with pytest.raises(InvalidStatus) as caught:
                async with socket_to(url, "/v1/realtime?model=big", additional_headers=headers):
                    pass
            assert caught.value.response.status_code == 403
            async with socket_to(url, "/v1/realtime?model=mini", additional_headers=headers) as socket:
                await socket.send(json.dumps({"type": "session.update", "session": {"model": "big"}}))
                (event,) = await until_closed(socket)
            assert event["error"]["code"] == "model_not_allowed"
            async with socket_to(url, "/v1/responses", additional_headers=headers) as socket:
                await socket.send(json.dumps({"type": "response.create", "model": "big", "input": "hi"}))
                (event,) = await until_closed(socket)
            assert (event["status"], event["error"]["code"]) == (403, "model_not_allowed")
        assert await book.nothing_happened()
