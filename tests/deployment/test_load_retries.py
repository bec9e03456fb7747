"""A version that failed to load for an external reason is retried, until the retry is called off."""

import asyncio

from structlog.testing import capture_logs

from inferd.deployment.load_retries import LoadRetries, failure_text
from inferd.errors import InferdError, LoadFailed, LoadInterrupted
from inferd.health.reload_backoff import ReloadBackoffRules
from tests.event_loop import on_loop, until

RULES = ReloadBackoffRules(first=0.001, fast_tries=4, slow_interval=0.02)
KILLED = LoadInterrupted("m", 1, "killed")
BROKEN = LoadFailed("m", 1, "broken")


@on_loop
async def test_it_is_tried_later_and_later_and_never_given_up() -> None:
    asked: list[str] = []

    def again(name: str) -> None:
        asked.append(name)
        retries.ended(name, [BROKEN, KILLED])

    retries = LoadRetries(again, RULES)
    with capture_logs() as logs:
        retries.ended("m", [KILLED])
        await until(lambda: len(asked) > 5)
        retries.close()
    assert set(asked) == {"m"}
    assert [entry["seconds"] for entry in logs][:6] == [0.001, 0.002, 0.004, 0.02, 0.02, 0.02]


@on_loop
async def test_nothing_else_is_tried_again() -> None:
    asked: list[str] = []
    retries = LoadRetries(asked.append, RULES)
    endings: dict[str, list[InferdError]] = {"well": [], "broken": [BROKEN]}
    for name, failures in endings.items():
        # Also where it had been interrupted before.
        retries.ended(name, [KILLED])
        retries.ended(name, failures)
    retries.ended("forgotten", [KILLED])
    retries.forget("forgotten")
    retries.ended("m", [KILLED])
    await until(lambda: bool(asked))
    retries.ended("closed", [KILLED])
    retries.close()
    retries.ended("late", [KILLED])
    await asyncio.sleep(0.005)
    assert asked == ["m"]


@on_loop
async def test_what_has_loaded_in_between_begins_at_the_first_wait() -> None:
    retries = LoadRetries(lambda _: None, ReloadBackoffRules(first=60.0))
    with capture_logs() as logs:
        for failures in ([KILLED], [KILLED], [], [KILLED]):
            retries.ended("m", failures)
    retries.close()
    assert [entry["seconds"] for entry in logs] == [60.0, 120.0, 60.0]


def test_others_read_whether_it_will_be_loaded_again() -> None:
    assert failure_text(KILLED) == "model 'm' version 1 failed to load: killed; it will be retried"
    assert failure_text(BROKEN) == "model 'm' version 1 failed to load: broken"
