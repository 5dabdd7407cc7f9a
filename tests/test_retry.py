"""How long a request that breaks is tried again, by a clock that only moves when it is told to."""

from types import SimpleNamespace

import pytest

from soupray.core.errors import StoreUnavailable
from soupray.store import objects
from soupray.store.objects import retry


@pytest.fixture
def broken(monkeypatch):
    """A request whose attempts last so many seconds each and break; then it answers."""
    clock = SimpleNamespace(now=0.0)

    def wait(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(objects, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=wait))

    def request(*seconds: float):
        left = list(seconds)

        def ask() -> tuple[str, float]:
            if not left:
                return "answer", clock.now
            wait(left.pop(0))
            raise StoreUnavailable("away") from OSError("HTTP error: connection reset")

        return ask, left

    return request


def test_a_first_attempt_that_lasted_as_long_as_all_tries_is_repeated(broken):
    ask, _ = broken(40.0)
    assert retry(ask) == ("answer", 40.2)


def test_the_tries_end_thirty_seconds_after_the_first_that_failed(broken):
    # At 0, 0.2, 0.6, 1.4, 3, 6.2, 12.6 and 25.4 s; the next would be at 51.
    ask, left = broken(*[0.0] * 20)
    with pytest.raises(StoreUnavailable):
        retry(ask)
    assert len(left) == 20 - 8
    ask, left = broken(*[40.0] * 20)  # the second breaks 40.2 s after the first
    with pytest.raises(StoreUnavailable):
        retry(ask)
    assert len(left) == 20 - 2


def test_what_is_refused_is_not_tried_again():
    def refused() -> None:
        asked.append(1)
        raise StoreUnavailable("403") from OSError("403 Forbidden")

    asked: list[int] = []
    with pytest.raises(StoreUnavailable):
        retry(refused)
    assert len(asked) == 1
