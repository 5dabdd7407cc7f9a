"""Faults at random times against the real servers: `make soak`, or python -m benchmarks.soak.

Sweeps and soups through the command line on a two-node Ray, SeaweedFS behind a server that breaks
requests, MLflow as a server. After each run the store is checked; each seed ends with an
undisturbed run, whose leaderboard must equal that of an undisturbed home, as must what is known of
the first trials (the anytime soup) and the decision of the stop rule that every third seed has.
Every third seed lets weights go (`keep`), which is disturbed, too: at the end those are there that
the rule keeps, and no others.
Prints the report; exit status 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.soak import noop, report
from benchmarks.soak.checks import leaks
from benchmarks.soak.place import kind_of
from benchmarks.soak.runs import Result, disturbed, reference
from benchmarks.soak.servers import MLFLOW_PASSWORD, Servers
from soupray.store.objects import open_store

SEEDS = range(1, 61)
NOOPS = 1000


class Stopped(Exception):
    """SIGTERM: what was done so far is reported."""


def main() -> int:
    """Run seeds until there were enough faults, then the no-op trials, then look for secrets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--faults", type=int, default=200, help="at least this number; 0: no-ops only"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    results: list[Result] = []
    measured = None
    noops = min(NOOPS, 5 * arguments.faults) or NOOPS
    with Servers(folder) as servers:
        with suppress(Stopped):
            for result in soaked(servers, arguments.seeds, arguments.faults):
                results.append(result)
                say(result)
            measured = noop.measure(servers, noops)
        found = secrets_found(servers)
    command = shlex.join(["python", "-m", "benchmarks.soak", *sys.argv[1:]])
    print(report.markdown(command, results, measured, found))
    wrong = report.problems_of(results, measured, found)
    if wrong:
        print(f"logs and stores: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(bool(wrong))


def stop(number: int, frame: object) -> None:
    """What SIGTERM does, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def soaked(servers: Servers, seeds: list[int], faults: int) -> Iterator[Result]:
    """What comes of each seed, until there were enough faults."""
    if not faults:
        return
    kinds = {kind_of(seed).name: kind_of(seed) for seed in seeds}
    undisturbed = {name: reference(servers, kind) for name, kind in kinds.items()}
    came = 0
    for seed in seeds:
        result = disturbed(servers, seed, undisturbed)
        yield result
        came += len(result.came)
        if came >= faults:
            return


def secrets_found(servers: Servers) -> list[str]:
    """Secrets in logs, results, MLflow and the bucket; the servers' own files hold some."""
    token = Path.home() / ".ray" / "auth_token"
    direct = servers.direct
    secrets = {
        "the S3 secret key": direct.secret_key,
        "the S3 access key": direct.access_key,
        "MLflow's password": MLFLOW_PASSWORD,
        "Ray's token": token.read_text().strip() if token.exists() else "",
    }
    folders = [p for p in servers.folder.iterdir() if p.is_dir() and p.name != "store"]
    return leaks(secrets, [*folders, servers.temporary], [open_store("s3://soupray", direct)])


def say(result: Result) -> None:
    """A seed is over."""
    print(
        f"seed {result.seed}: {len(result.came)} faults, {len(result.runs)} runs, "
        f"{len(result.lost)} trainings lost, {result.seconds:.0f} s, "
        f"{'; '.join(result.problems) or 'well'}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
