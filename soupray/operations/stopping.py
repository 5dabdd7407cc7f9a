"""Ask what works on a sweep to stop, through the store (`soupray stop`)."""

from __future__ import annotations

import logging
import time

from soupray.core.records import Record
from soupray.store import layout
from soupray.store.lease import RENEW_S, ask_to_stop, find_driver
from soupray.store.objects import Store
from soupray.store.presence import ask_present_to_stop, find_present

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at what runs."""


class Stopping(Record, frozen=True, kw_only=True):
    """What became of a request to stop.

    Attributes:
        sweep: name of the sweep.
        driver: who drove it; None if nobody did.
        others: the soups, checks and diagnoses that ran, such as "soup of node-3, pid 4711".
        stopped: whether all of them ended.
        left: those that did not, the driver by its name.
        seconds: how long this was waited for.
    """

    sweep: str
    driver: str | None
    others: tuple[str, ...]
    stopped: bool
    left: tuple[str, ...]
    seconds: float

    @property
    def asked(self) -> tuple[str, ...]:
        """All that were asked to stop."""
        return (*([self.driver] if self.driver else []), *self.others)


def stop(store: Store, sweep: str, wait_s: float) -> Stopping:
    """Ask the driver of a sweep and its soups to stop, and wait until they have.

    Args:
        store: the store of the sweep.
        sweep: name of the sweep.
        wait_s: longest time to wait, in seconds; 0: do not wait.

    Raises:
        StoreError: the store cannot be reached.
    """
    driver, others = find_driver(store, sweep), find_present(store, sweep)
    names = {one.id: one.working.name for one in others}
    if driver is not None:
        ask_to_stop(store, sweep, driver.lease.holder)
        names = {driver.lease.holder: driver.lease.who} | names
    for one in others:
        ask_present_to_stop(store, sweep, one)
    for name in names.values():
        log.info(f"asked {name} to stop; while it works, it looks every {RENEW_S:.0f} s ...")
    started = time.monotonic()
    left = set(names)
    while left and (time_left := started + wait_s - time.monotonic()) > 0:
        time.sleep(min(time_left, LOOK_S))
        left &= _running(store, sweep)
    if driver is not None and driver.lease.holder not in left:
        store.delete(layout.stop_request(sweep))
    return Stopping(
        sweep=sweep,
        driver=driver.lease.who if driver else None,
        others=tuple(one.working.name for one in others),
        stopped=bool(names) and not left,
        left=tuple(name for holder, name in names.items() if holder in left),
        seconds=time.monotonic() - started,
    )


def _running(store: Store, sweep: str) -> set[str]:
    """The holder of the lease and the names of the other work that runs."""
    driver = find_driver(store, sweep)
    return {one.id for one in find_present(store, sweep)} | (
        {driver.lease.holder} if driver else set()
    )
