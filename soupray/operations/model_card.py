"""The model card of an exported folder, as the hub of Hugging Face reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from msgspec import UNSET

from soupray import __version__
from soupray.core.candidates import FisherSoup, LayerSoup
from soupray.core.errors import NotFound
from soupray.core.names import plain, slug
from soupray.core.ports import UNKNOWN, Origin
from soupray.core.records import Basis, encode_pretty
from soupray.core.task_vectors import TaskVectorSoup
from soupray.core.trials import Ingredient
from soupray.reporting.history import SoupRun, recipe_name, soup_runs, stored_leaderboard
from soupray.reporting.model_folder import kind_of
from soupray.reporting.ranking import Entry, Measured, measure_of
from soupray.reporting.recipe_file import RecipeFile, spec_of
from soupray.search.state import find_state
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec
from soupray.spec.task import FileInit
from soupray.store.objects import Store
from soupray.store.weights_file import sha256_of
from soupray.tasks import recorded_task
from soupray.tasks.examples import answering

SHOWN = 50
"""Number of ingredients that the card lists; the recipe file has all."""

KINDS = {
    "open_clip": ("open_clip", "zero-shot-image-classification"),
    "timm": ("timm", "image-classification"),
    "transformers": ("transformers", "text-classification"),
    "torch": ("pytorch", "image-classification"),
}
"""(library, task) by `task.kind`, as the hub names what the library does with the folder."""

ENCODER = "feature-extraction"
"""What the hub may do with a body of transformers: as a classifier it would get a random head."""


class Facts(NamedTuple):
    """All that a card says.

    Attributes:
        recipe, spec: of the model.
        board: its entry on a leaderboard, and the run of it; None: no leaderboard has it.
        basis: the data; None: it is not in the store.
        trials: the ingredients that were trained or imported, by the digest of their weights.
        origin: the pre-trained weights.
        example: code that uses the folder.
        notes: what was done in the evaluation and the library does not do.
        weights: SHA-256 of the files of weights, by name.
    """

    recipe: RecipeFile
    spec: SweepSpec
    board: tuple[Entry, SoupRun | None] | None
    basis: Basis | None
    trials: dict[str, Ingredient]
    origin: Origin | None
    example: str
    notes: list[str]
    weights: dict[str, str]

    @property
    def imported(self) -> list[str]:
        """Names of the ingredients that others trained."""
        found = [i.trial for i in self.trials.values() if i.trial.method == "imported"]
        return sorted(str(trial.hparams.get("file", trial.key)) for trial in found)

    @property
    def licence(self) -> str:
        """The licence of the base; UNKNOWN if weights of others are in the model too."""
        return UNKNOWN if self.origin is None or self.imported else self.origin.licence


def write_card(recipe: RecipeFile, home: Path, folder: Path, notes: list[str]) -> None:
    """Write README.md and the recipe file into an exported folder.

    Args:
        recipe: of the model.
        home: folder for the state of this machine.
        folder: has the files of the library.
        notes: what was done in the evaluation and the library does not do, in sentences.

    Raises:
        StoreError: the store cannot be read.
        CheckpointError: a record in it is damaged.
    """
    (folder / recipe_name(recipe.name)).write_bytes(encode_pretty(recipe))
    card = ModelCard(_text(_facts(recipe, home, folder, notes)))
    card.save(folder / "README.md")


def _facts(recipe: RecipeFile, home: Path, folder: Path, notes: list[str]) -> Facts:
    spec = spec_of(recipe)
    task = recorded_task(spec.task)
    try:
        store = find_place(spec, home).open_store()
    except NotFound:  # a model folder needs no store
        store = None
    state = None if store is None else find_state(store, spec)
    used = set(recipe.candidate.checkpoints)
    trials = [] if state is None else state.ingredients
    file = spec.init.file if isinstance(spec.init, FileInit) else None
    return Facts(
        recipe=recipe,
        spec=spec,
        board=None if store is None else _entry(recipe, spec, store, home),
        basis=None if state is None else state.basis,
        trials={i.checkpoint.sha256: i for i in trials if i.checkpoint.sha256 in used},
        origin=Origin(name=file) if file else task.origin(),
        example=answering(task.example(), kind_of(spec)),
        notes=notes,
        weights={path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))},
    )


def _entry(
    recipe: RecipeFile, spec: SweepSpec, store: Store, home: Path
) -> tuple[Entry, SoupRun | None] | None:
    """The entry of this model on the newest leaderboard that has it."""
    for key in (None, *(run.key for run in reversed(soup_runs(store, spec)))):
        try:
            entries, _, run = stored_leaderboard(spec, home, key)
        except NotFound:
            continue
        for entry in entries:
            if (entry.name, entry.candidate) == (recipe.name, recipe.candidate.digest):
                return entry, run
    return None


def _text(facts: Facts) -> str:
    """The card: its data for the hub, and what people read."""
    recipe, spec = facts.recipe, facts.spec
    passed = (
        f"# {_plain(recipe.name)} of {_plain(spec.name)}",
        _what(facts),
        "## Base model",
        _base(facts),
        "## Scores",
        *_scores(facts),
        "## Use it",
        f"```python\n{facts.example}```",
        *_inputs(facts),
        "## How it was made",
        *_made(facts),
    )
    return f"---\n{_data(facts).to_yaml()}\n---\n\n" + "\n\n".join(passed) + "\n"


def _data(facts: Facts) -> ModelCardData:
    spec, recipe = facts.spec, facts.recipe
    library, task = KINDS[spec.task.kind]
    results = []
    towers = spec.data.kind == "captions"
    of_results = task if library != "open_clip" or towers else "image-classification"
    if facts.board is not None:
        measured = {"test": facts.board[0].test, **facts.board[0].shifts}
        digests = {s.name: s.digest for s in facts.basis.splits} if facts.basis else {}
        results = [
            EvalResult(
                task_type=_tag(spec, None) or of_results,
                dataset_type=spec.data.kind,
                dataset_name=f"{spec.name}: {name}",
                dataset_split=name,
                dataset_revision=digests.get(name),
                metric_type=one.graded or measure_of(one),
                metric_value=round(one.accuracy, 6),
            )
            for name, one in measured.items()
        ]
    encoder = library == "transformers" and getattr(spec.task, "pooling", "own") != "own"
    return ModelCardData(
        base_model=facts.origin.hub if facts.origin else None,
        eval_results=results or None,
        library_name=library,
        license=facts.licence,
        metrics=sorted({r.metric_type for r in results}) or None,
        model_name=f"{spec.name}-{slug(recipe.name)}",
        pipeline_tag=ENCODER if encoder else _tag(spec, task),
        tags=["soupray", "model-soup", recipe.recipe],
    )


_KINDS = {
    "one_class": ("A classifier", "{count} classes"),
    "multi_label": (
        "A classifier for several labels",
        "{count} classes, any number of them at a time",
    ),
    "regression": ("A regression", "{count} outputs"),
    "segmentation": ("A model for masks", "one mask"),
    "retrieval": ("An encoder", "one embedding of queries and documents"),
}

_TAGS = {
    "regression": None,
    "segmentation": "image-segmentation",
    "retrieval": "sentence-similarity",
}
"""Tags of pipelines of models that are no classifiers."""


def _tag(spec: SweepSpec, otherwise: str | None) -> str | None:
    """The tag of a model's pipeline; `otherwise` for classifiers, and for both towers of a CLIP."""
    return otherwise if spec.data.kind == "captions" else _TAGS.get(kind_of(spec), otherwise)


def _what(facts: Facts) -> str:
    spec, count = facts.spec, len(facts.recipe.candidate.checkpoints)
    several = f"the average of the weights of {count} models" if count > 1 else "one model"
    made, outputs = _KINDS[kind_of(spec)]
    if spec.data.kind == "captions":
        made, outputs = "Two towers", "one embedding of images and captions"
    outputs = outputs.format(count=len(spec.task.classes))
    return (
        f"{made} of {spec.task.kind} ({_plain(spec.task.model)}) with {outputs}: {several}, by the "
        "recipe "
        f"{_plain(facts.recipe.recipe)} of soupray {__version__}."
    )


def _base(facts: Facts) -> str:
    origin = facts.origin
    if origin is None:
        return "None: the weights were drawn at random. The licence is that of who trained them."
    said = f"{_plain(origin.name)}. Its licence: {_plain(origin.licence)}"
    if origin.read_from:
        said += f" (read from {_plain(origin.read_from)})."
    else:
        said += ": no metadata of these weights on the machine of the export named one."
    if facts.imported:
        said += (
            f" Other people's weights are in the model too ({_plain(', '.join(facts.imported))}); "
            "their licence is not known here."
        )
    return f"{said} The licence of the data is not known here."


def _scores(facts: Facts) -> Iterator[str]:
    if facts.board is None:
        yield "No leaderboard in the store has this model, so that there are no scores here."
        return
    entry, run = facts.board
    rows: list[tuple[str, Measured]] = [("held-out", entry.held_out)]
    rows += [("rank", entry.rank)] if entry.rank else []
    rows += [("test", entry.test)]
    for name, shift in entry.shifts.items():
        rows.append((f"shift: {name}", shift))
        if name in entry.test_on_classes:
            rows.append((f"test, classes of {name}", entry.test_on_classes[name]))
    yield "\n".join(_table(rows))
    if (targets := facts.spec.targets) is not UNSET:
        near = f"every output is within {targets.tolerance:g} of its target"
        right = near if targets.kind == "regression" else "all its labels are"
        loss = "squared error" if targets.kind == "regression" else "binary cross-entropy"
        right = f"A sample is right if {right}"
        if targets.kind == "segmentation":
            right = "iou is the mean over images of intersection over union"
        if targets.kind == "retrieval":
            right = (
                "A query is right if its document is one of the nearest of all documents of its "
                f"split, by inner products (k = {targets.first or 1}); recall is the share of "
                "these"
            )
            loss = f"InfoNCE over them, with inner products times {targets.scale or 1:g}"
        yield f"{right}; NLL is the mean {loss}."
    of_run = f" of the run {_plain(run.key)}" if run is not None else ""
    yield (
        f"From the leaderboard{of_run}. Held-out data chose the model, so that its score there is "
        "optimistic; test and shifts were evaluated once, after the choice. Intervals are "
        f"{'of the bootstrap' if entry.test.graded else 'exact (Clopper-Pearson)'}."
    )


def _table(rows: list[tuple[str, Measured]]) -> Iterator[str]:
    """The lines of a table of scores; metrics beyond accuracy are those of the objective."""
    others = rows[0][1].others
    more = [] if others is UNSET else sorted(others)
    score = _plain(rows[0][1].graded or measure_of(rows[0][1]))
    heads = ["split", "samples", score, "95 % interval", "NLL", "ECE", *map(_plain, more)]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'--:|' * (len(heads) - 1)}"
    for name, m in rows:
        interval = f"{100 * m.low:.1f} to {100 * m.high:.1f} %"
        cells = [name, str(m.n), f"{100 * m.accuracy:.1f} %", interval, f"{m.nll:.3f}"]
        cells += [f"{m.ece:.3f}", *(f"{m.read(metric):.3f}" for metric in more)]
        yield f"| {' | '.join(cells)} |"


def _inputs(facts: Facts) -> Iterator[str]:
    if facts.recipe.temperature is not None:
        yield (
            f"For calibrated probabilities, divide the logits by {facts.recipe.temperature:.6g}, a "
            "temperature that was fitted on held-out data. The NLL and ECE above are without it."
        )
    names = facts.spec.task.classes
    if facts.recipe.thresholds is not None:
        cuts = zip(names, facts.recipe.thresholds, strict=True)
        said = ", ".join(f"{_plain(name)} {cut:.6g}" for name, cut in cuts)
        yield (
            "A class is predicted where its logit is above 0. The thresholds with the best F1 on "
            f"held-out data: {said}. The scores above are without them."
        )
    outputs = {"regression": "Outputs", "segmentation": "Mask"}.get(kind_of(facts.spec), "Classes")
    if kind_of(facts.spec) != "retrieval":
        yield f"{outputs}: {_plain(', '.join(names))}."
    if facts.spec.task.kind != "transformers":
        yield (
            "soupray turns pictures as their EXIF says, and lays transparency over white, before "
            "it resizes them. The library does not: do it first where your pictures need it."
        )
    if facts.notes:
        yield "What was done in the evaluation, and the library does not do:"
        yield "\n".join(f"- {note}" for note in facts.notes)


def _made(facts: Facts) -> Iterator[str]:
    recipe, candidate = facts.recipe, facts.recipe.candidate
    options = ", ".join(f"{name}: {value}" for name, value in recipe.options.items())
    yield f"Recipe {_plain(recipe.recipe)}" + (f" with {_plain(options)}." if options else ".")
    parts = list(zip(candidate.checkpoints, candidate.coefficients, strict=True))
    table = [
        "| ingredient | coefficient | hyperparameters | SHA-256 of its weights |",
        "|---|--:|---|---|",
    ]
    for sha, share in parts[:SHOWN]:
        trial = facts.trials.get(sha)
        hparams = trial.trial.hparams if trial is not None else {}
        said = ", ".join(
            f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in hparams.items()
        )
        name = recipe.ingredients.get(sha, sha[:12])
        table.append(f"| {_plain(name)} | {share:.4g} | {_plain(said)} | `{sha}` |")
    yield "\n".join(table)
    if len(parts) > SHOWN:
        yield f"The recipe file has the other {len(parts) - SHOWN}."
    if isinstance(candidate, LayerSoup):
        yield "Each layer has its own coefficients; the table has their means."
    if isinstance(candidate, FisherSoup):
        yield "Each weight has its own coefficients (Fisher information); the table has equal ones."
    if isinstance(candidate, TaskVectorSoup):
        yield "Each weight has its own coefficients: entries of the trials' changes are left out."
    if facts.basis is not None:
        yield f"Data ({facts.spec.data.kind}): the digests of their splits."
        rows = ["| split | role | samples | SHA-256 |", "|---|---|--:|---|"]
        rows += [f"| {s.name} | {s.role} | {s.size} | `{s.digest}` |" for s in facts.basis.splits]
        yield "\n".join(rows)
    files = ", ".join(f"{name} `{sha}`" for name, sha in facts.weights.items())
    yield f"SHA-256 of the files of weights: {files}."
    again = f"soupray rebuild {recipe_name(recipe.name)}"
    yield f"With the store of the sweep, `{again}` makes the weights again, byte for byte."


def _plain(text: str) -> str:
    """Text as a card shows it: on one line, without the marks of tables, HTML and links."""
    shown = plain(text)
    for mark in "\\|<>[]`*_":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
