"""The bucket: every object's path, and what lies there.

    weights/<sha256>.safetensors                weights of one model, named by their content
    blobs/<sha256>.safetensors                  arrays that are not weights: logits with labels,
                                                features, Fisher information, BatchNorm statistics
                                                (older versions wrote them under weights/)
    bases/<basis>.json                          Basis: splits, theta_0 and anchor of a sweep
    trials/<trial>/manifest.json                Ingredient or Tombstone: the trial is over
    imports/<basis>/<trial>.json                Trial: a checkpoint that was imported into a pool
    resume/<trial>/<epoch>.safetensors          state of a trial that runs, after an epoch
    resume/<trial>/state.json                   Saved: which of these states counts

    evaluations/<key>.json                      Evaluation: one model on one split
    decisions/<key>.json                        Tally or Rejected: one candidate against a bound
    answers/<key>.json                          the answer to a request about weights
    statistics/<key>.json                       BlobRef: BatchNorm statistics of a soup
    soups/<key>.json                            CheckpointRef: the saved weights of a soup

    sweeps/<name>/specs/<digest>.json           the spec, as plain data
    sweeps/<name>/lease.json                    LeaseRecord: who drives the sweep
    sweeps/<name>/progress.json                 Heartbeat: what the driver runs now
    sweeps/<name>/asked/<search>/<index>.json   Suggested: a trial that the sampler suggested
    sweeps/<name>/stopped/<search>/<trial>.json Stopped: a trial that the scheduler stopped
    sweeps/<name>/choices/<key>.json            Choices: what the recipes chose, frozen
    sweeps/<name>/diagnoses/<key>.json          Diagnosis: how the models of the pool differ
    sweeps/<name>/results/<file>                leaderboard, figures, recipe files; the newest

    doctor/<id>                                 written, read and deleted again by `soupray doctor`

Everything is create-only but `lease.json`, `progress.json`, `resume/` and `results/`, which are
overwritten, and `weights/` and `blobs/`, where writing the same bytes again changes nothing. A file
of arrays is written before the record that names it. `<key>`, `<basis>` and `<search>` are digests
of everything that the object follows from. Only `soupray gc` deletes what others wrote.
"""

from __future__ import annotations

from typing import Literal

WEIGHTS, BLOBS, RESUME, TRIALS, SWEEPS = "weights", "blobs", "resume", "trials", "sweeps"
"""Folders that are listed as a whole."""

Results = Literal["evaluations", "decisions", "answers", "soups", "statistics"]
"""Folders of what was evaluated; see `result`."""


def weights(sha256: str) -> str:
    """Weights of one model, by the SHA-256 (hex) of the file."""
    return f"{WEIGHTS}/{sha256}.safetensors"


def blob(sha256: str) -> str:
    """Arrays that are not weights, by the SHA-256 (hex) of the file."""
    return f"{BLOBS}/{sha256}.safetensors"


def basis(key: str) -> str:
    """The basis called `key`."""
    return f"bases/{key}.json"


def manifest(trial: str) -> str:
    """The manifest of the trial with this key. It exists once the trial is over."""
    return f"{TRIALS}/{trial}/manifest.json"


def imports(basis: str) -> str:
    """The folder of the trials that were imported into the pool of this basis."""
    return f"imports/{basis}"


def imported(basis: str, trial: str) -> str:
    """One imported trial, by its key."""
    return f"{imports(basis)}/{trial}.json"


def resume_folder(trial: str) -> str:
    """The folder of the states of a trial that runs, by its key."""
    return f"{RESUME}/{trial}"


def resume_weights(trial: str, epoch: int) -> str:
    """The state of a trial after `epoch` epochs."""
    return f"{resume_folder(trial)}/{epoch}.safetensors"


def resume_state(trial: str) -> str:
    """Which of the states of a trial counts."""
    return f"{resume_folder(trial)}/state.json"


def result(folder: Results, key: str) -> str:
    """A record of what was evaluated, by the digest of everything that it follows from."""
    return f"{folder}/{key}.json"


def specs(sweep: str) -> str:
    """The folder of all specs that ran under the name `sweep`."""
    return f"{SWEEPS}/{sweep}/specs"


def spec(sweep: str, digest: str) -> str:
    """The spec with this digest."""
    return f"{specs(sweep)}/{digest}.json"


def lease(sweep: str) -> str:
    """The lease of the driver of `sweep`."""
    return f"{SWEEPS}/{sweep}/lease.json"


def heartbeat(sweep: str) -> str:
    """What the driver of `sweep` says of itself."""
    return f"{SWEEPS}/{sweep}/progress.json"


def suggestions(sweep: str, search: str) -> str:
    """The folder of the trials that a sampler suggested; `search` is the digest of the search."""
    return f"{SWEEPS}/{sweep}/asked/{search}"


def suggestion(sweep: str, search: str, index: int) -> str:
    """The suggestion number `index`, from 0."""
    return f"{suggestions(sweep, search)}/{index:05d}.json"


def all_stopped(sweep: str, search: str) -> str:
    """The folder of the trials that a scheduler stopped; `search` is the digest of the search."""
    return f"{SWEEPS}/{sweep}/stopped/{search}"


def stopped(sweep: str, search: str, trial: str) -> str:
    """The record that the trial with this key was stopped."""
    return f"{all_stopped(sweep, search)}/{trial}.json"


def choices(sweep: str, key: str) -> str:
    """What the recipes chose."""
    return f"{SWEEPS}/{sweep}/choices/{key}.json"


def diagnosis(sweep: str, key: str) -> str:
    """How the models of a pool differ."""
    return f"{SWEEPS}/{sweep}/diagnoses/{key}.json"


def results(sweep: str) -> str:
    """The folder of the newest results of `sweep`."""
    return f"{SWEEPS}/{sweep}/results"


def results_file(sweep: str, name: str) -> str:
    """One file of the newest results."""
    return f"{results(sweep)}/{name}"


def probe(name: str) -> str:
    """An object that `soupray doctor` writes, reads and deletes."""
    return f"doctor/{name}"


def stem(path: str) -> str:
    """The file name at the end of `path` without its ending: a key, a digest or an index."""
    return path.rpartition("/")[2].partition(".")[0]
