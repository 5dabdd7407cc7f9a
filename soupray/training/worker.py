"""The context of a worker (store, data and task, made from the spec), and the basis of a sweep."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from msgspec import UNSET

from soupray.core.errors import ConfigError, Diverged
from soupray.core.hyperparameters import Hyperparameters
from soupray.core.ports import Task
from soupray.core.records import Basis, Predictions, Teacher
from soupray.data.cache import Data, open_data
from soupray.data.changes import refuse_changed
from soupray.evaluation.evaluator import Site, StoredEvaluator
from soupray.evaluation.local import LocalWorkers
from soupray.services.place import Place
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.tables import CaptionsSpec, TextSpec
from soupray.spec.task import FileInit, ProbeInit, TrainedInit
from soupray.store import layout
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import create_record
from soupray.store.weights_file import Weights
from soupray.tasks import other_code, task_of
from soupray.tasks.files import local_path
from soupray.tasks.foreign import load_foreign, named_classes
from soupray.training.loop import trained
from soupray.training.probe import probed
from soupray.training.start import Start
from soupray.training.teacher import Known, TeacherSource, for_samples, stored_teacher


@dataclass(frozen=True)
class WorkerContext:
    """The spec of a sweep, and what a worker makes from it: store, data and task."""

    spec: SweepSpec
    checkpoints: Checkpoints
    data: Data
    task: Task

    def workers(self) -> LocalWorkers:
        """The workers of an evaluator, in this process."""
        return LocalWorkers(self.task, self.data, self.checkpoints, self.spec.setting)

    def evaluator(self) -> StoredEvaluator:
        """An evaluator in this process."""
        workers = self.workers()
        return StoredEvaluator(Site(workers, workers.cache, self.spec.setting))


@functools.lru_cache(maxsize=1)  # an actor runs many trials of one sweep
def worker_context(spec: SweepSpec, place: Place) -> WorkerContext:
    """The context for a sweep in this process.

    It sets the number of threads of this process, because that number changes low bits of results.

    Args:
        spec: of the sweep.
        place: where its store and its local folder are.

    Raises:
        ConfigError: the data or the model cannot be made.
    """
    if changed := other_code(spec.task):
        raise ConfigError(f"{changed}. Start again, with the same code on all machines.")
    torch.set_num_threads(spec.threads)
    # On GPUs, TF32 would round float32 products, and cuDNN could choose other kernels in each run.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    cache = place.folder
    return WorkerContext(
        spec=spec,
        checkpoints=Checkpoints(place.open_store(), cache / "weights"),
        data=open_data(spec, cache / "data"),
        task=task_of(spec.task),
    )


def make_basis(
    spec: SweepSpec, place: Place, key: str, teacher: TeacherSource | None = None
) -> Basis:
    """Decode the data, make theta_0, and store the basis of a sweep.

    If two processes make the same basis, both use the one that is stored first.

    Args:
        spec: of the sweep.
        place: where its store and its local folder are.
        key: of the basis in the store.
        teacher: a model that the trials learn from.

    Raises:
        ConfigError: the data or the model cannot be made, or the teacher does not fit them.
        Diverged: the training of theta_0 diverged.
    """
    lesson = (
        None if teacher is None else _lesson(worker_context(teacher.spec, teacher.place), teacher)
    )
    here = worker_context(spec, place)
    notes = _long_texts(here)
    taught = UNSET if teacher is None or lesson is None else _taught(here, teacher, lesson)
    torch.manual_seed(spec.seed)  # weights that are not pre-trained are drawn
    start = here.task.init()
    refuse_infinite(start, spec.task.model)
    init = here.checkpoints.save(_trained_from(start, here), {"init": spec.init_name})
    anchor = init
    if spec.init_name != spec.anchor == "zero_shot":
        anchor = here.checkpoints.save(start, {"init": spec.anchor})
    basis = Basis(
        key=key,
        splits=here.data.splits,
        init=init,
        anchor=anchor,
        anchor_name=spec.anchor,
        notes=(*here.data.notes, *notes),
        shape=here.data.samples(here.data.split("test"))[0].shape[1:],
        teacher=taught,
    )
    return create_record(here.checkpoints.store, layout.basis(basis.key), basis)


def check_data(spec: SweepSpec, place: Place, basis: Basis) -> None:
    """Check that the data of this machine are still those of the basis of a sweep.

    Args:
        spec: of the sweep.
        place: where its local folder is.
        basis: of the sweep.

    Raises:
        ConfigError: a split has changed, or the data cannot be read.
    """
    refuse_changed(open_data(spec, place.folder / "data"), {s.name: s.digest for s in basis.splits})


def _lesson(there: WorkerContext, teacher: TeacherSource) -> tuple[Predictions, Known]:
    """What a teacher says of the train split of its own sweep, and that split."""
    split = there.data.split("train")
    refuse_changed(there.data, {"train": teacher.train}, f"teacher: {teacher.entry}: ")
    return there.evaluator().predictions(teacher.candidate, split), _known(there)


def _known(there: WorkerContext) -> Known:
    split = there.data.split("train")
    labels = there.data.samples(split)[1]
    return Known(tuple(there.spec.task.classes), split, there.data.ids(split), labels)


def _taught(
    here: WorkerContext, teacher: TeacherSource, lesson: tuple[Predictions, Known]
) -> Teacher:
    mine = _known(here)
    logits = for_samples(*lesson, mine, teacher.entry)
    return stored_teacher(teacher, logits, here.checkpoints, mine.split)


def refuse_infinite(weights: Weights, model: str) -> None:
    """Refuse weights that no trial could start from: nobody can average them.

    Args:
        weights: by name.
        model: its name, for the message.

    Raises:
        ConfigError: a value is NaN or infinite, as the limits of Gemma's layers are before the
            pre-trained ones replace them.
    """
    for name, tensor in weights.items():
        if bad := tensor.numel() - int(torch.isfinite(tensor).sum()):
            raise ConfigError(
                f"task.model = {model!r}: its new weights are NaN or infinite at {bad} of the "
                f"{tensor.numel()} elements of {name!r}: nothing to average. Write pre-trained "
                "weights under task, or name another model."
            )


def _long_texts(here: WorkerContext) -> list[str]:
    """Refuse texts that the model would cut, in all splits, before anything is stored.

    Returns:
        How many captions it cuts, in words, if the spec allows it.

    Raises:
        ConfigError: a text has too many tokens.
    """
    data, task, notes = here.spec.data, cast(Any, here.task), list[str]()
    for split in here.data.splits:
        samples = here.data.samples(split)[0]
        if isinstance(data, CaptionsSpec):  # they stay on disk: there are images in them
            notes += task.pairs.long(split.name, samples, data.on_long == "cut")
        elif isinstance(data, TextSpec) and data.on_long == "fail":
            task.refuse_long(split.name, torch.from_numpy(np.array(samples)))
    return notes


def _trained_from(weights: Weights, here: WorkerContext) -> Weights:
    """theta_0: `weights`, or what the spec makes of them (a training, a probe), or a file."""
    spec = here.spec
    if isinstance(spec.init, ProbeInit):
        return probed(here.task, here.data, weights, spec.init.probe, spec.setting)
    if isinstance(spec.init, FileInit):
        path = local_path(spec.init.file)
        return here.task.adopt(load_foreign(path), str(path), named_classes(path))
    if not isinstance(spec.init, TrainedInit):
        return weights
    hparams = Hyperparameters(**spec.init.trained.numbers())
    start = Start(
        weights=weights,
        seed=spec.seed,
        device=spec.setting.device,
        training=spec.training.record(),
        loss=spec.own_loss,
        augmentation=spec.own_augmentation,
        class_weights=spec.loss_weights,
    )
    try:
        return trained(here.task, here.data, hparams, start)
    except Diverged as error:
        raise Diverged(f"init.trained: {error}. Lower its lr in the spec.") from error
