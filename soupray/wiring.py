"""The world of a sweep, rebuilt in every process from records: store, data, task."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from soupray.checkpoints import Checkpoints, create_record, find_record
from soupray.data.cache import DATA_VERSION, Data, open_data
from soupray.evaluation.evaluator import StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.plan import CODE_VERSION
from soupray.records import Basis, Record, digest
from soupray.spec import SweepSpec
from soupray.storage import Credentials, Store, open_store
from soupray.tasks.image import OpenClipTask, local_digests


class Place(Record, frozen=True, kw_only=True):
    """Where a sweep keeps things, in a form that may cross a process border.

    `credentials` is the path of a file readable by its owner only, never a secret; it is None
    where boto3's chain finds them on each machine.
    """

    storage: str
    credentials: str | None
    cache: str

    def open_store(self) -> Store:
        """The store, with credentials read here and now."""
        return open_store(self.storage, self.read_credentials())

    def read_credentials(self) -> Credentials | None:
        """The embedded store's key pair, if there is one."""
        if self.credentials is None:
            return None
        found = json.loads(Path(self.credentials).read_text())
        return Credentials(found["endpoint"], found["access_key"], found["secret_key"])


@dataclass(frozen=True)
class World:
    """What a worker works with."""

    spec: SweepSpec
    checkpoints: Checkpoints
    data: Data
    task: OpenClipTask

    def workers(self) -> LocalWorkers:
        """Workers in this process."""
        return LocalWorkers(self.task, self.data, self.checkpoints, self.spec.setting)

    def evaluator(self) -> StoredEvaluator:
        """An evaluator in this process."""
        workers = self.workers()
        return StoredEvaluator(workers, workers.shelf, self.spec.setting)


@functools.lru_cache(maxsize=1)  # a worker serves one sweep; actors are reused by its trials
def world(spec: SweepSpec, place: Place) -> World:
    """The world of `spec`. Sets this process's thread count: it changes low bits of results."""
    torch.set_num_threads(spec.threads)
    # float32 means float32 on every device, and the same from run to run.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    cache = Path(place.cache)
    return World(
        spec=spec,
        checkpoints=Checkpoints(place.open_store(), cache / "weights"),
        data=open_data(spec, cache / "data"),
        task=OpenClipTask(spec.task),
    )


def basis_key(spec: SweepSpec) -> str:
    """Names the basis of `spec`: everything that data and init follow from."""
    data, task = spec.data.model_dump(mode="json"), spec.task.model_dump(mode="json")
    versions = [DATA_VERSION, CODE_VERSION, *local_digests(spec.task)]
    return digest([data, task, spec.seed, spec.init, spec.anchor, spec.threads, versions])[:32]


def find_basis(store: Store, spec: SweepSpec) -> Basis | None:
    """The stored basis of `spec`, if there is one."""
    basis: Basis | None = find_record(store, f"bases/{basis_key(spec)}.json", Basis)
    return basis


def make_basis(spec: SweepSpec, place: Place, key: str) -> Basis:
    """Decode the data, build and store theta_0. Whoever comes second adopts the first's basis."""
    here = world(spec, place)
    init = here.checkpoints.save(here.task.init(), {"init": spec.init})
    basis = Basis(key=key, splits=here.data.splits, init=init, anchor=init)
    return create_record(here.checkpoints.store, f"bases/{basis.key}.json", basis)
