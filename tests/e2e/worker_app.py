"""An application for servers that start several workers: `tests.e2e.worker_app:app`, configured by `ASKII_CONFIG`.

With `USED_EARLY` set, the process that imports it makes a call at once and closes neither ledger nor journal: where a
server loads the application before it forks, every worker inherits both, with a worker's name and a delivery owner.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import msgspec

from askii_middleware import AskiiMiddleware, get_cost_tracker

from .worker_signs import USED, connected

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "by-output",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 0, "completion_tokens": USED, "total_tokens": USED},
}
LOADED_BY = os.getpid()
tracker = get_cost_tracker()


async def _answer(send: Send, body: object) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-pid", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


def who() -> dict[str, Any]:
    """What must be this process's own."""
    session: Any = tracker._session
    writer: Any = tracker._writer
    delivery = session._delivery
    (worker,) = delivery.workers
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "loaded_by": LOADED_BY,
        "worker": session.worker,
        "owner": worker._o.owner,
        "jitter": worker._o.random.random(),
        "journal": str(writer._journal.own_path),
        "sockets": connected("self"),
    }


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    await _answer(send, who() if scope["path"] == "/who" else ANSWER)


app = AskiiMiddleware(endpoint, tracker=tracker)


async def _use() -> None:
    async with tracker.track_tokens("early", "by-output", expected_input_tokens=0, max_output_tokens=USED) as usage:
        usage["output_tokens"] = USED
    delivery: Any = tracker._session._delivery
    await delivery.stop(1.0)  # its lease would keep all others from delivering for half a minute


if os.environ.get("USED_EARLY"):
    asyncio.run(_use())
