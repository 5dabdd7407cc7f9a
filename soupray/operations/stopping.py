"""Ask the driver of a sweep to stop, through the store (`soupray stop`)."""

from __future__ import annotations

import logging
import time

from soupray.core.records import Record
from soupray.store import layout
from soupray.store.lease import RENEW_S, ask_to_stop, find_driver
from soupray.store.objects import Store

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the lease."""


class Stopping(Record, frozen=True, kw_only=True):
    """What became of a request to stop.

    Attributes:
        sweep: name of the sweep.
        driver: who drove it; None if nobody did.
        stopped: whether the driver gave its lease back.
        seconds: how long this was waited for.
    """

    sweep: str
    driver: str | None
    stopped: bool
    seconds: float


def stop(store: Store, sweep: str, wait_s: float) -> Stopping:
    """Ask the driver of a sweep to stop, and wait until it has.

    Args:
        store: the store of the sweep.
        sweep: name of the sweep.
        wait_s: longest time to wait, in seconds; 0: do not wait.

    Raises:
        StoreError: the store cannot be reached.
    """
    driver = find_driver(store, sweep)
    if driver is None:
        return Stopping(sweep=sweep, driver=None, stopped=False, seconds=0.0)
    who, holder = driver.lease.who, driver.lease.holder
    ask_to_stop(store, sweep, holder)
    log.info(f"asked {who} to stop; while trials run, it looks every {RENEW_S:.0f} s ...")
    started = time.monotonic()
    stopped = False
    while not stopped and (left := started + wait_s - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_S))
        now = find_driver(store, sweep)
        stopped = now is None or now.lease.holder != holder
    if stopped:
        store.delete(layout.stop_request(sweep))
    return Stopping(sweep=sweep, driver=who, stopped=stopped, seconds=time.monotonic() - started)
