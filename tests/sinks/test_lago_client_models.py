"""Lago's official Python client as a reader of what we send."""

from __future__ import annotations

import json

from lago_python_client.models.event import BatchEvent, EventResponse

from .support import record, running_lago
from .test_lago_tokens import tokens


async def test_point_01_lago_python_clients_models_take_our_bodies_for_their_own() -> None:
    async with (
        running_lago(properties={"team": "{team}", "env": "prod"}) as coins,
        running_lago(events="tokens") as kinds,
    ):
        await coins.sink.send([record(n, coins=10**n) for n in range(12)])
        await kinds.sink.send([tokens(n) for n in range(12)])
        for lago in (coins, kinds):
            for body in map(json.loads, lago.recorder.bodies):
                read = BatchEvent.parse_obj(body).dict()
                shorn = [{k: v for k, v in event.items() if v is not None} for event in read["events"]]
                assert shorn == body["events"]


async def test_point_28_what_lago_shows_is_read_alike_by_its_client_and_by_us() -> None:
    async with running_lago() as lago:
        await lago.sink.send([record(n, coins=n) for n in range(3)])
        ours = [event async for event in lago.sink.api().events("acme")]
    for n, event in enumerate(ours):
        theirs = EventResponse.parse_obj(event._asdict())
        assert {name: getattr(theirs, name) for name in event._fields} == event._asdict()
        assert event.properties["askii_coins"] == str(n)
    assert len(ours) == 3
