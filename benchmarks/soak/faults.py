"""Which fault comes when: a pure function of the seed.

Times are counts of requests to the store: a fault is due at the n-th request of its phase, and
happens to the first request that it fits; what is no fault of a request happens beside it.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from typing import NamedTuple

from benchmarks.soak.proxy import Asked, fits

OF_REQUESTS = (
    "500",
    "503 SlowDown",
    "reset before",
    "reset after",
    "create lost",
    "500 after it was done",
    "truncated",
    "cut short",
    "delayed",
)
"""`lost` and `after it was done`: a conditional write that arrived, and whose repetition is told
'exists'. `truncated`: the connection ends in the body; `cut short`: half a body with the length of
a whole one, which no client can see."""

FREEING = "driver killed as it frees"
"""While the record that weights go is on its way: it arrives, and the deletion never comes."""

_EITHER = (
    "driver killed",
    "node killed",
    "store killed, 5 s away",
    "store frozen, 8 s",
    "MLflow killed",
    "local disk full",
)
BESIDE = {
    "sweep": ("worker killed", *_EITHER, "store killed, 45 s away"),
    "soup": ("actor killed", *_EITHER),
    "gc": (FREEING, "driver killed", "store killed, 5 s away", "store frozen, 8 s"),
}
"""Faults of processes and disks, by the phase in which they can happen."""

OF_REQUESTS_A_PHASE, BESIDE_A_PHASE = 12, 2
LONG = {"sweep": 90, "soup": 150, "gc": 30}
"""Requests within which a phase's faults are due; an undisturbed one has some more."""


class Due(NamedTuple):
    """A fault that is to come, at the n-th request of its phase."""

    at: int
    kind: str


class Injected(NamedTuple):
    """A fault that came: in which phase and run of it, and when."""

    kind: str
    phase: str
    run: int
    when: float


def due(seed: int, phase: str) -> list[Due]:
    """The faults of a phase. Nothing but the arguments decides."""
    chance = random.Random(f"{seed} {phase}")
    kinds = [chance.choice(OF_REQUESTS) for _ in range(OF_REQUESTS_A_PHASE)]
    beside = BESIDE[phase]
    kinds += [beside[(2 * seed + i) % len(beside)] for i in range(BESIDE_A_PHASE)]
    return sorted(Due(chance.randrange(2, LONG[phase]), kind) for kind in kinds)


class Trouble:
    """Counts the requests of one phase, and says which fault is due."""

    def __init__(self, phase: str, faults: list[Due]) -> None:
        self.phase, self.run = phase, 0
        self.came: list[Injected] = []
        self.beside: queue.Queue[str] = queue.Queue()
        self.requests = 0
        self._faults, self._lock = list(faults), threading.Lock()

    def judge(self, asked: Asked) -> str | None:
        """The fault of this request, if one is due; those beside it are put into their queue."""
        with self._lock:
            self.requests += 1
            for fault in [f for f in self._faults if f.at <= self.requests]:
                if fault.kind == FREEING:
                    if asked.method == "PUT" and asked.path.endswith("/freed.json"):
                        self._faults.remove(fault)
                        self.beside.put(fault.kind)
                        return "delayed"
                elif fault.kind not in OF_REQUESTS:
                    self._faults.remove(fault)
                    self.beside.put(fault.kind)
                elif fits(fault.kind, asked):
                    self._faults.remove(fault)
                    self.came.append(Injected(fault.kind, self.phase, self.run, time.time()))
                    return fault.kind
            return None

    def happened(self, kind: str) -> None:
        """A fault beside the requests came."""
        self.came.append(Injected(kind, self.phase, self.run, time.time()))
