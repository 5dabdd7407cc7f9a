"""The path of every object in the store, and what each object contains.

    weights/<sha256>.safetensors                weights of one model, named by their content
    blobs/<sha256>.safetensors                  arrays that are not weights: logits with labels,
                                                features, Fisher information, BatchNorm statistics
                                                (older versions wrote them under weights/)
    bases/<basis>.json                          Basis: splits, theta_0 and anchor of a sweep
    trials/<trial>/manifest.json                Ingredient or Tombstone: the trial is over
    trials/<trial>/freed.json                   Freed: its weights were let go
    imports/<basis>/<trial>.json                Trial: a checkpoint that was imported into a pool
    resume/<trial>/<epoch>.safetensors          state of a running trial after an epoch
    resume/<trial>/state.json                   Saved: which of these states is valid

    evaluations/<key>.json                      Evaluation: one model on one split
    decisions/<key>.json                        Tally or Rejected: one candidate against a bound
    answers/<key>.json                          the answer to a request about weights
    statistics/<key>.json                       BlobRef: BatchNorm statistics of a soup
    soups/<key>.json                            CheckpointRef: the saved weights of a soup

    sweeps/<name>/specs/<digest>.json           the spec, as plain data
    sweeps/<name>/lease.json                    LeaseRecord: the driver of the sweep
    sweeps/<name>/progress.json                 Heartbeat: what the driver runs now
    sweeps/<name>/stop.json                     StopRequest: somebody asked the driver to stop
    sweeps/<name>/working/<id>.json             Working: a soup, check or diagnosis that runs
    sweeps/<name>/working/<id>.stop.json        StopRequest: somebody asked it to stop
    sweeps/<name>/check.json                    Report: what `soupray check` found last
    sweeps/<name>/asked/<search>/<index>.json   Suggested: a trial that the sampler suggested
    sweeps/<name>/stopped/<search>/<trial>.json Stopped: a trial that the scheduler stopped
    sweeps/<name>/prefixes/<key>.json           Prefix: what the first trials of the plan are worth
    sweeps/<name>/enough/<search>.json          Enough: the stop rule ended the search
    sweeps/<name>/drain.json                    Drain: the driver lets no further trial start
    sweeps/<name>/choices/<key>.json            Choices: what the recipes chose; never changed
    sweeps/<name>/diagnoses/<key>.json          Diagnosis: how the models of the pool differ
    sweeps/<name>/results/<file>                newest leaderboard, figures and recipe files
    sweeps/<name>/leaderboards/<key>/<file>     the same of each run of `soup`, by its choices

    doctor/<id>                                 written, read and deleted by `soupray doctor`

`lease.json`, `progress.json`, `stop.json`, `drain.json`, `check.json`, and the files in `working/`,
`resume/`, `results/` and `leaderboards/` are overwritten. Files in `weights/` and `blobs/` may be
written again with the same bytes. Every other object is written once and never overwritten, but for
the manifest of a trial whose weights were let go and that is trained again. A file of arrays is
written before the record that names it, and `freed.json` before the weights are deleted. `<key>`,
`<basis>` and `<search>` are digests of all inputs of the object. Only `soupray gc` and `soupray
delete` delete objects of other processes, but for the records in `working/` of processes that were
killed; with `keep` in its spec, `soupray soup` deletes weights at its end.
"""

from __future__ import annotations

import re
from typing import Literal

from soupray.core.names import joined

WEIGHTS, BLOBS, RESUME, TRIALS, SWEEPS = "weights", "blobs", "resume", "trials", "sweeps"
"""Top-level folders that other modules list completely."""

Results = Literal["evaluations", "decisions", "answers", "soups", "statistics"]
"""Folders of evaluation records; `result` returns the paths in them."""


def weights(sha256: str) -> str:
    """Return the path of a file of weights, from the SHA-256 (hexadecimal) of the file."""
    return joined(WEIGHTS, f"{sha256}.safetensors")


def blob(sha256: str) -> str:
    """Return the path of arrays that are not weights, from the SHA-256 (hex) of the file."""
    return joined(BLOBS, f"{sha256}.safetensors")


def basis(key: str) -> str:
    """Return the path of the basis with this key."""
    return joined("bases", f"{key}.json")


def manifest(trial: str) -> str:
    """Return the path of a trial's manifest, from its key. It exists once the trial is over."""
    return joined(TRIALS, trial, "manifest.json")


def freed(trial: str) -> str:
    """Return the path of the record that a trial's weights were let go, from the trial's key."""
    return joined(TRIALS, trial, "freed.json")


def imports(basis: str) -> str:
    """Return the folder of the trials that were imported into the pool of this basis."""
    return joined("imports", basis)


def imported(basis: str, trial: str) -> str:
    """Return the path of one imported trial, from the keys of the basis and the trial."""
    return joined("imports", basis, f"{trial}.json")


def resume_folder(trial: str) -> str:
    """Return the folder with the saved states of a running trial, from its key."""
    return joined(RESUME, trial)


def resume_weights(trial: str, epoch: int) -> str:
    """Return the path of the state of a trial after `epoch` epochs."""
    return joined(RESUME, trial, f"{epoch}.safetensors")


def resume_state(trial: str) -> str:
    """Return the path of the record that names the valid saved state of a trial."""
    return joined(RESUME, trial, "state.json")


def result(folder: Results, key: str) -> str:
    """Return the path of an evaluation record.

    Args:
        folder: the kind of the record.
        key: digest of all inputs of the evaluation.
    """
    return joined(folder, f"{key}.json")


def specs(sweep: str) -> str:
    """Return the folder of all specs that were run under the name `sweep`."""
    return joined(SWEEPS, sweep, "specs")


def spec(sweep: str, digest: str) -> str:
    """Return the path of the spec with this digest."""
    return joined(SWEEPS, sweep, "specs", f"{digest}.json")


def lease(sweep: str) -> str:
    """Return the path of the lease of the driver of `sweep`."""
    return joined(SWEEPS, sweep, "lease.json")


def heartbeat(sweep: str) -> str:
    """Return the path of the heartbeat, in which the driver of `sweep` reports what it runs."""
    return joined(SWEEPS, sweep, "progress.json")


def stop_request(sweep: str) -> str:
    """Return the path of the request to the driver of `sweep` to stop."""
    return joined(SWEEPS, sweep, "stop.json")


def all_working(sweep: str) -> str:
    """Return the folder of the soups, checks and diagnoses of `sweep` that run."""
    return joined(SWEEPS, sweep, "working")


def working(sweep: str, name: str) -> str:
    """Return the path of the record that work with this name (32 hexadecimal digits) runs."""
    return joined(SWEEPS, sweep, "working", f"{name}.json")


def stop_of(sweep: str, name: str) -> str:
    """Return the path of the request to the work with this name to stop."""
    return joined(SWEEPS, sweep, "working", f"{name}.stop.json")


def check(sweep: str) -> str:
    """Return the path of what the last check of the trials of `sweep` found."""
    return joined(SWEEPS, sweep, "check.json")


def suggestions(sweep: str, search: str) -> str:
    """Return the folder of the trials that a sampler suggested.

    Args:
        sweep: name of the sweep.
        search: digest of the search.
    """
    return joined(SWEEPS, sweep, "asked", search)


def suggestion(sweep: str, search: str, index: int) -> str:
    """Return the path of suggestion number `index`, counted from 0."""
    return joined(SWEEPS, sweep, "asked", search, f"{index:05d}.json")


def all_stopped(sweep: str, search: str) -> str:
    """Return the folder of the trials that a scheduler stopped.

    Args:
        sweep: name of the sweep.
        search: digest of the search.
    """
    return joined(SWEEPS, sweep, "stopped", search)


def stopped(sweep: str, search: str, trial: str) -> str:
    """Return the path of the record that the trial with this key was stopped."""
    return joined(SWEEPS, sweep, "stopped", search, f"{trial}.json")


def prefixes(sweep: str) -> str:
    """Return the folder of what the first trials of plans are worth."""
    return joined(SWEEPS, sweep, "prefixes")


def prefix(sweep: str, key: str) -> str:
    """Return the path of what some trials are worth together, from the digest of their keys."""
    return joined(SWEEPS, sweep, "prefixes", f"{key}.json")


def enough(sweep: str, search: str) -> str:
    """Return the path of the record that the stop rule ended a search, from its digest."""
    return joined(SWEEPS, sweep, "enough", f"{search}.json")


def drain(sweep: str) -> str:
    """Return the path of the driver's word that no further trial may start."""
    return joined(SWEEPS, sweep, "drain.json")


def choices(sweep: str, key: str) -> str:
    """Return the path of the record of what the recipes chose."""
    return joined(SWEEPS, sweep, "choices", f"{key}.json")


def diagnosis(sweep: str, key: str) -> str:
    """Return the path of the record of how the models of a pool differ."""
    return joined(SWEEPS, sweep, "diagnoses", f"{key}.json")


def results(sweep: str) -> str:
    """Return the folder of the newest results of `sweep`."""
    return joined(SWEEPS, sweep, "results")


def results_file(sweep: str, name: str) -> str:
    """Return the path of one file of the newest results."""
    return joined(SWEEPS, sweep, "results", name)


def leaderboards(sweep: str) -> str:
    """Return the folder of the results of all runs of `soup`."""
    return joined(SWEEPS, sweep, "leaderboards")


def leaderboard_file(sweep: str, key: str, name: str) -> str:
    """Return the path of one file of the results of one run, from the key of its choices."""
    return joined(SWEEPS, sweep, "leaderboards", key, name)


def probe(name: str) -> str:
    """Return the path of an object that `soupray doctor` writes, reads and deletes."""
    return joined("doctor", name)


_HEX, _SWEEP = "[0-9a-f]", r"[a-z0-9][a-z0-9_-]{0,62}"
_OURS = re.compile(
    rf"({WEIGHTS}|{BLOBS})/{_HEX}{{64}}\.safetensors"
    rf"|bases/{_HEX}{{32}}\.json"
    rf"|{TRIALS}/{_HEX}{{16}}/(manifest|freed)\.json"
    rf"|imports/{_HEX}{{32}}/{_HEX}{{16}}\.json"
    rf"|{RESUME}/{_HEX}{{16}}/([0-9]+\.safetensors|state\.json)"
    rf"|(evaluations|decisions|answers|statistics|soups)/{_HEX}{{32}}\.json"
    rf"|{SWEEPS}/{_SWEEP}/(lease|progress|stop|drain|check|specs/{_HEX}{{64}}"
    rf"|(choices|diagnoses|prefixes)/{_HEX}{{32}}|enough/{_HEX}{{16}}"
    rf"|working/{_HEX}{{32}}(\.stop)?"
    rf"|asked/{_HEX}{{16}}/[0-9]{{5,}}|stopped/{_HEX}{{16}}/{_HEX}{{16}})\.json"
    rf"|{SWEEPS}/{_SWEEP}/(results|leaderboards/{_HEX}{{32}})/[a-z0-9_]+(\.recipe)?\.(json|csv|png|svg|html)"
)
"""The paths of all objects that are listed at the top of this module, but of `doctor/`."""


def is_ours(path: str) -> bool:
    """Whether soupray writes objects with such a path. Other programs may write into the bucket."""
    return _OURS.fullmatch(path) is not None


def stem(path: str) -> str:
    """Return the file name at the end of `path` without its ending: a key, a digest or an index."""
    return path.rpartition("/")[2].partition(".")[0]
