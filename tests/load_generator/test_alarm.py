"""Waking an event loop at a moment."""

import asyncio
import time

from inferd.load_generator.alarm import Alarm
from tests.event_loop import on_loop


@on_loop
async def test_an_alarm_rings_at_its_moment_and_never_before() -> None:
    rung: list[int] = []
    over = asyncio.Event()

    def wake() -> None:
        rung.append(time.monotonic_ns())
        over.set()

    moment = time.monotonic_ns() + 20_000_000
    with Alarm(wake) as alarm:
        alarm.set(moment)
        await over.wait()
    assert len(rung) == 1
    assert rung[0] >= moment


@on_loop
async def test_a_moment_that_has_passed_rings_at_once() -> None:
    over = asyncio.Event()
    with Alarm(over.set) as alarm:
        for moment in (0, 1, time.monotonic_ns()):
            over.clear()
            alarm.set(moment)
            await over.wait()


@on_loop
async def test_setting_it_again_replaces_the_moment() -> None:
    over = asyncio.Event()
    with Alarm(over.set) as alarm:
        alarm.set(time.monotonic_ns() + 3600 * 10**9)
        alarm.set(time.monotonic_ns() + 1_000_000)
        await over.wait()


@on_loop
async def test_a_closed_alarm_does_not_ring() -> None:
    rung: list[None] = []
    with Alarm(lambda: rung.append(None)) as alarm:
        alarm.set(time.monotonic_ns() + 1_000_000)
    over = asyncio.Event()
    with Alarm(over.set) as later:
        later.set(time.monotonic_ns() + 5_000_000)
        await over.wait()
    assert rung == []
