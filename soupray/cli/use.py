"""The verbs that use a model of a leaderboard: predict, serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soupray.cli.options import (
    home_option,
    json_option,
    what_argument,
)

if TYPE_CHECKING:
    from soupray.inference.predict import Predicted

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command()
@what_argument
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@home_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File .csv, .jsonl or .parquet. Default: CSV on standard output.",
)
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes.")
@click.option("--probabilities", is_flag=True, help="A column for each class.")
@click.option("--calibrated", is_flag=True, help="Divide logits by the entry's temperature.")
@click.option("--texts", is_flag=True, help="INPUT are captions, for a model of both towers.")
@click.option("--column", help="Of a table: the texts or paths. Default: text, path, the only one.")
@click.option("--device", help="cpu, cuda or cuda:N. Default: a GPU if there is one.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Default: that of the evaluation.")
@click.option(
    "--address",
    help="Ray cluster for many inputs, which its nodes can read; local: this machine.",
)
@json_option
def predict(
    what: str,
    inputs: tuple[str, ...],
    home: Path,
    address: str | None,
    output: Path | None,
    top: int,
    probabilities: bool,
    calibrated: bool,
    texts: bool,
    column: str | None,
    device: str | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    r"""Predict the class of each INPUT with a model of a leaderboard.

    WHAT is a *.recipe.json file, SWEEP:ENTRY, SWEEP@champion or models:/NAME@ALIAS; SWEEP is the
    name of a sweep of this home or the path of a spec. INPUT is a folder or files of images, a
    table (.csv, .tsv, .jsonl) of paths or texts, a .txt file of texts, or - for lines on standard
    input.

    Inputs that cannot be read are named, and the exit status is 1; the others are written.
    --json prints a summary in place of the predictions.

    \b
    soupray predict digits@champion photos/ --output predictions.csv
    soupray predict digits:greedy 5.png 7.png --top 3
    cat reviews.txt | soupray predict reviews@champion - --probabilities
    """
    from soupray.cli.tables import print_json
    from soupray.inference.load import load_found
    from soupray.inference.meaning import Wanted
    from soupray.inference.predict import Again, parts_of, writer
    from soupray.inference.predict import predict as run
    from soupray.inference.sources import find_inputs
    from soupray.inference.what import find
    from soupray.reporting.live import Bars, say

    _refuse(output, address, device)
    source = find(what, home)
    model = load_found(source, home, device, batch_size)
    model = model.calibrated() if calibrated else model
    model = model.texts() if texts else model
    found = find_inputs(inputs, model.reader.kind, column, sys.stdin)
    for note in found.notes:
        say(f"note: {note}.")
    wanted = Wanted(top, probabilities)
    model.meaning.check(wanted)
    quiet = as_json and output is None
    again = Again(source, home, batch_size, calibrated, texts)
    parts = parts_of(model, found.given, address, again)
    with writer(output, model.meaning.columns(wanted), sys.stdout, quiet) as write:
        done = run(parts, found, model.meaning, wanted, write, Bars())
    if as_json:
        print_json(done)
    _say(done, model.name, output)
    sys.exit(1 if done.failed else 0)


def _refuse(output: Path | None, address: str | None, device: str | None) -> None:
    """Raise ConfigError for options that cannot be, before the model is loaded."""
    from soupray.core.errors import ConfigError
    from soupray.inference.predict import FORMATS

    if address and device:
        raise ConfigError("--device is for this machine: leave it out with --address.")
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--output {output}: the ending says the format; it is one of {', '.join(FORMATS)}."
        )


def _say(done: Predicted, model: str, output: Path | None) -> None:
    """What was done to inputs, which could not be read, and the classes; all on stderr."""
    from soupray.reporting.live import say

    total = done.predicted + len(done.failed)
    for how, count in sorted(done.done.items()):
        say(f"note: {count} of {total} inputs: {how}.")
    for name, why in done.failed.items():
        say(f"cannot be read: {name}: {why}")
    shares = sorted(done.classes.items(), key=lambda one: -one[1])
    said, rest = ", ".join(f"{name} {count}" for name, count in shares[:6]), len(shares) - 6
    say(
        f"{done.predicted} of {total} inputs predicted with {model}{': ' if shares else ''}"
        f"{said}{f', {rest} more classes' if rest > 0 else ''}.{f' {output}' if output else ''}"
    )


@click.command()
@what_argument
@home_option
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
)
@click.option(
    "--gpus", type=click.FloatRange(0, 1), help="Of each replica. Default: 1 if there is a GPU."
)
@click.option("--calibrated", is_flag=True, help="Divide logits by the entry's temperature.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Default: that of the evaluation.")
def serve(
    what: str,
    home: Path,
    port: int,
    replicas: int,
    gpus: float | None,
    calibrated: bool,
    batch_size: int | None,
) -> None:
    r"""Answer over HTTP with a model of a leaderboard, on Ray Serve; Ctrl-C ends it.

    WHAT is as in `soupray predict`, and so are the answers. POST /predict takes the bytes of an
    image, a form with several, or texts as JSON. GET /metadata says what the model is, /health
    whether it is ready, /openapi.json how to call it. Requests of many clients share forward
    passes.

    It listens on 127.0.0.1 only; cluster/README.md says how to serve on Kubernetes. A smaller
    --batch-size answers a lone request sooner, and changes low bits of probabilities.

    
    soupray serve digits@champion
    soupray serve digits:ensemble --port 8080 --replicas 2
    curl -F image=@5.png -F image=@7.png http://127.0.0.1:8000/predict
    curl --data-binary @7.png -H 'Content-Type: image/png' \\
        http://127.0.0.1:8000/predict
    """
    from soupray.cli.console import tell
    from soupray.inference.serve import Arguments, served
    from soupray.reporting.live import say

    given = Arguments(
        what=what,
        home=str(home),
        batch_size=batch_size,
        calibrated=calibrated,
        replicas=replicas,
        gpus=gpus,
    )
    say("starting Ray and loading the model ...")
    with served(given, port) as server:
        tell(f"{server.url}  {server.model}")
        tell(server.example)
        try:
            server.wait()
        except KeyboardInterrupt:
            say("stopping.")


VERBS = (predict, serve)
