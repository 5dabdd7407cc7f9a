"""Make a pool from checkpoints that were trained elsewhere: `soupray import`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from soupray.core.errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    EvaluationError,
    SouprayError,
    TrialError,
)
from soupray.core.names import plain
from soupray.core.records import Basis
from soupray.core.trials import Ingredient, Trial, key_of
from soupray.search.plan import CODE_VERSION
from soupray.search.state import basis_key, find_basis
from soupray.services.place import start_services
from soupray.spec.files import path_of
from soupray.spec.sweep_spec import SweepSpec
from soupray.store import layout
from soupray.store.manifests import create_manifest, find_manifest
from soupray.store.objects import check_bucket, create_record
from soupray.store.weights_file import tensor_digests
from soupray.tasks.foreign import load_foreign, named_classes
from soupray.training.trial import stored
from soupray.training.worker import WorkerContext, check_data, make_basis, worker_context

log = logging.getLogger(__name__)


def run_import(spec: SweepSpec, home: Path, named: Sequence[str]) -> Iterator[Ingredient]:
    """Make each file an ingredient of the pool of `spec`, and evaluate it on held-out data.

    theta_0 is that of the spec; `init: {file: PATH}` names the checkpoint from which the files were
    fine-tuned. Importing a file again changes nothing. A file that cannot be imported does not stop
    the others: the reason is logged, and an error at the end counts such files.

    Args:
        spec: the sweep.
        home: folder for the state of this machine.
        named: files, folders of Hugging Face, or patterns.

    Yields:
        The ingredient of each file; of a file with the weights of another one, that of the other.

    Raises:
        ConfigError: no file matches a pattern.
        CheckpointError: a file cannot be read, holds NaN, or (IncompatibleWeights) is of another
            model.
        TrialError: a model that gives the same class for every sample.
        EvaluationError: a model whose outputs are not finite.
    """
    files = _found(named)
    place = start_services(spec, home).place
    check_bucket(place.storage, place.read_credentials())
    known = find_basis(place.open_store(), spec)
    if known is not None:
        check_data(spec, place, known)
    basis = known or make_basis(spec, place, basis_key(spec))
    here = worker_context(spec, place)
    source: dict[str, Path] = {}
    problems: list[SouprayError] = []
    for number, file in enumerate(files, spec.search.trials):
        try:
            made = _imported(here, basis, file, number)
        except (CheckpointError, TrialError, EvaluationError) as error:
            problems.append(error)
            if len(files) > 1:
                log.warning(f"not imported: {error}")
            continue
        _say_duplicate(made, file, source.setdefault(made.trial.key, file))
        yield made
    if problems and len(files) == 1:
        raise problems[0]
    if problems:
        raise CheckpointError(
            f"{len(problems)} of {len(files)} files were not imported, for the reasons above; the "
            f"first: {problems[0]} The others are in the pool."
        )


def _say_duplicate(made: Ingredient, file: Path, first: Path) -> None:
    """Log that `file` is no ingredient of its own, if it has the weights of another file."""
    known = str(made.trial.hparams["file"])
    if first != file:
        log.warning(f"{file} has the weights of {first}: the pool has them once.")
    elif known != plain(file.name):
        log.warning(f"{file} has the weights of {known}, which is in the pool already.")


def _imported(here: WorkerContext, basis: Basis, file: Path, number: int) -> Ingredient:
    weights = here.task.adopt(load_foreign(file), str(file), named_classes(file))
    data = tuple(basis.split(name).digest for name in ("train", "held_out"))
    trial = Trial(
        key="",
        index=number,
        sweep=here.spec.name,
        method="imported",
        hparams={"file": plain(file.name)},
        seed=here.spec.seed,
        init=basis.init.sha256,
        data=data,
        code=CODE_VERSION,
        setting=here.spec.setting,
    )
    trial = msgspec.structs.replace(trial, key=key_of(trial, tensor_digests(weights)))
    store = here.checkpoints.store
    made = find_manifest(store, trial.key)
    if made is None:
        try:
            made = stored(trial, weights, here.task, here.data, here.checkpoints)
        except Diverged as error:
            raise TrialError(f"{file}: {error}: nothing to average. Leave it out.") from error
        except EvaluationError as error:  # it names the model by a digest
            raise EvaluationError(
                f"{file}: its outputs are not finite on held-out data, though its weights are. "
                "Leave it out."
            ) from error
        made = create_manifest(store, made)
    assert isinstance(made, Ingredient)
    # The list entry is written last, so that its manifest always exists.
    create_record(store, layout.imported(basis.key, trial.key), made.trial)
    return made


def _found(named: Sequence[str]) -> list[Path]:
    """Return the files, sorted by path, each once."""
    found: set[Path] = set()
    for pattern in named:
        path = path_of(pattern, "import")
        root = Path(path.anchor)  # "." of a relative path
        try:
            here = [path] if path.exists() else list(root.glob(str(path.relative_to(path.anchor))))
        except ValueError as error:  # `**` is a name of its own, or nothing
            raise ConfigError(f"{pattern!r} is no pattern: {error}.") from error
        if not here:
            raise ConfigError(f"{pattern}: there is no such file. Name checkpoints, or a pattern.")
        found |= set(here)
    return sorted(found)
