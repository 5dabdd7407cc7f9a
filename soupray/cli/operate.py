"""The verbs of whoever runs the store, the tracker and the cluster, from up to cluster validate."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from soupray.cli.options import (
    home_option,
    json_option,
    load_named,
    spec_argument,
    spec_of,
)
from soupray.core.errors import ConfigError

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command()
@home_option
def up(home: Path) -> None:
    """Start this home's S3 store, or find the running one."""
    from soupray.cli.console import tell
    from soupray.services import embedded

    running = embedded.up(home)
    tell(f"store {running.endpoint} ({running.storage_url}), tracker {running.tracking_url}")


@click.command()
@home_option
def down(home: Path) -> None:
    """Stop everything that was started for this home. What is stored stays."""
    from soupray.services import embedded

    click.echo("stopped." if embedded.down(home) else "nothing was running.")


@click.command()
@spec_argument
@home_option
@click.option("--port", type=int, help="Default: a free one.")
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
def ui(spec: Path | None, home: Path, port: int | None, opened: bool) -> None:
    r"""Print where MLflow shows SPEC's runs, best entry first; start MLflow's UI if need be.

    \b
    soupray ui sweeps/digits.yaml --open
    """
    from soupray.reporting.mlflow import view_of
    from soupray.services import embedded

    _, loaded = load_named(spec, home)
    if loaded.tracking == "off":
        raise ConfigError(f"{loaded.name} has `tracking: off`: MLflow knows nothing of it.")
    if loaded.tracking == "embedded":
        page = embedded.ui(home, port) + view_of(embedded.tracker(home)[0], loaded.name)
    else:
        page = loaded.tracking.rstrip("/") + view_of(loaded.tracking, loaded.name)
    click.echo(page)
    if opened:
        click.launch(page)


@click.command()
@click.argument("name")
@click.option("--image-folder", type=click.Path(path_type=Path), help="A folder for each class.")
@click.option("--text-csv", type=click.Path(path_type=Path), help="Also .tsv or .jsonl.")
@click.option("--model", help="Default: a CLIP of open_clip, or MiniLM for texts.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: NAME.yaml."
)
@json_option
def init(
    name: str,
    image_folder: Path | None,
    text_csv: Path | None,
    model: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    r"""Look at your data and write NAME.yaml, a spec with comments that runs as it is.

    --model is ARCHITECTURE/TAG of open_clip, soupray:digits, MODEL.TAG of timm, or a model of
    transformers.

    \b
    soupray init pets --image-folder pets/
    soupray init pets --image-folder pets/ --model resnet50.a1_in1k
    soupray init reviews --text-csv reviews.csv
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.operations.first_spec import IMAGE_MODEL, TEXT_MODEL, images_spec, texts_spec
    from soupray.reporting.live import say
    from soupray.spec.files import atomic_write

    if (image_folder is None) == (text_csv is None):
        raise click.UsageError("name your data: either --image-folder or --text-csv.")
    target = output or Path(f"{name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} is there already. Remove it, or name another --output.")
    if image_folder is not None:
        drafted = images_spec(name, image_folder, model or IMAGE_MODEL)
    else:
        assert text_csv is not None
        drafted = texts_spec(name, text_csv, model or TEXT_MODEL)
    atomic_write(target, drafted.text.encode())
    for note in drafted.notes:
        say(f"note: {note}.")
    if as_json:
        print_json(drafted)
        return
    total = sum(drafted.samples.values())
    tell(f"{target}: {len(drafted.samples)} classes, {total} samples.")
    tell(f"Next: soupray sweep {target} --dry-run")


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: standard output."
)
def schema(output: Path | None) -> None:
    r"""Print the JSON schema of a spec: every key, with its meaning and its default.

    Editors read it: they then complete and explain keys, and mark mistakes. The first line of a
    spec names the file.

    \b
    soupray schema --output schema.json
    # yaml-language-server: $schema=schema.json
    """
    from soupray.spec.files import atomic_write
    from soupray.spec.schema import as_text

    if output is None:
        click.echo(as_text(), nl=False)
    else:
        atomic_write(output, as_text().encode())


@click.command()
@spec_argument
@home_option
@json_option
def doctor(spec: Path | None, home: Path, as_json: bool) -> None:
    """Check store, credentials, MLflow, Ray and GPUs; exit status 1 when something is wrong."""
    from soupray.cli.console import tell, wrapped
    from soupray.cli.tables import print_json
    from soupray.core.names import plain
    from soupray.operations.doctor import examine

    _, loaded = load_named(spec, home)
    checks = []
    for check in examine(loaded, home):
        checks.append(check)
        if not as_json:
            line = f"{'ok  ' if check.ok else 'FAIL'}  {check.what:<12} {plain(check.seen)}"
            for part in wrapped(line, " " * 19).split("\n"):
                tell(part)
    if as_json:
        print_json(checks)
    sys.exit(0 if all(c.ok for c in checks) else 1)


@click.command()
@spec_argument
@home_option
def publish(spec: Path | None, home: Path) -> None:
    """Complete MLflow and other trackers from the store. Running it twice changes nothing."""
    from soupray.reporting.results import publish as index

    _, loaded = load_named(spec, home)
    if loaded.tracking == "off" and not loaded.trackers:
        raise ConfigError(f"{loaded.name} has `tracking: off`: there is nothing to publish to.")
    click.echo(f"{index(loaded, home)} runs of {loaded.name} are in the tracker.")


@click.command()
@spec_argument
@home_option
@json_option
@click.option("--dry-run", "dry", is_flag=True, help="List what would go; delete nothing.")
@click.option(
    "--older-than",
    "hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="Hours. What was written later stays: a trial or soup that runs may be about to name it.",
)
def gc(spec: Path | None, home: Path, as_json: bool, dry: bool, hours: float) -> None:
    r"""Delete what nothing in SPEC's store needs; never an ingredient of an entry.

    Resume states of trials that are over or that no spec plans, and weights and logits that no
    record of any sweep in that store names. With `keep` in SPEC, also the weights of its trials
    that no entry of a leaderboard is made of, however old they are.

    \b
    soupray gc sweeps/digits.yaml --dry-run
    """
    from soupray.cli.removals import show_garbage, show_staying
    from soupray.cli.tables import print_json
    from soupray.operations import retention
    from soupray.operations.garbage import find_garbage, remove
    from soupray.services.place import find_place

    _, loaded = load_named(spec, home)
    store = find_place(loaded, home).open_store()
    found = find_garbage(store, loaded, hours * 3600)
    if dry:
        let_go = retention.find_retention(store, loaded)
    else:
        found = remove(store, found, hours * 3600)
        let_go = retention.let_go_if_possible(store, loaded)
    gone = [*found, *retention.as_garbage(let_go)]
    if as_json:
        print_json(gone)
    else:
        show_garbage(gone, store.url, dry)
        show_staying(let_go)


@click.command()
@spec_argument
@home_option
@json_option
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=180.0,
    show_default=True,
    help="Seconds to wait for its end; 0: ask only.",
)
def stop(spec: Path | None, home: Path, as_json: bool, wait: float) -> None:
    r"""Ask SPEC's sweep, soups, checks and diagnoses to stop, on whatever machine they run.

    The request is an object in the store, which they look for every 15 seconds. A sweep ends its
    trials, and goes on later from their saved epochs. A soup goes on too: what was evaluated is
    stored. Exit status 1 if one of them still runs after --wait, 0 if all ended or nothing ran.

    \b
    soupray stop sweeps/digits.yaml
    soupray stop sweeps/digits.yaml --wait 0
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.operations.stopping import stop as ask
    from soupray.reporting.live import duration
    from soupray.services.place import find_place

    _, loaded = load_named(spec, home)
    done = ask(find_place(loaded, home).open_store(), loaded.name, wait)
    if as_json:
        print_json(done)
    elif not done.asked:
        tell(f"nothing works on {loaded.name}: nothing to stop.")
    elif wait == 0:
        tell(f"asked to stop {loaded.name}: {'; '.join(done.asked)}.")
    else:
        ended = [name for name in done.asked if name not in done.left]
        if ended:
            tell(f"stopped {loaded.name} after {duration(done.seconds)}: {'; '.join(ended)}.")
            tell("Run the same command again: it goes on.")
        for name in done.left:
            tell(
                f"{name} still works on {loaded.name} after {duration(done.seconds)}. It will stop "
                "when it looks; while it prepares the data, and in an older soupray, it does not: "
                "end that process."
            )
    sys.exit(0 if done.stopped or not done.asked or wait == 0 else 1)


@click.command()
@spec_of(required=True)
@home_option
@json_option
@click.option("--dry-run", "dry", is_flag=True, help="Say what would go; delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(spec: Path, home: Path, as_json: bool, dry: bool, yes: bool) -> None:
    r"""Delete the sweep of SPEC from its store: trials, weights, soups, leaderboards.

    What other sweeps of the store use stays: their trials, data and results, and every ingredient
    of their entries. The runs in MLflow and the files in results/ stay too. It is refused while a
    driver runs the sweep; end a soup of it yourself. If it is killed, the same command goes on.

    \b
    soupray delete mine.yaml --dry-run
    soupray delete mine.yaml --yes
    """
    from soupray.cli.removals import show_removal
    from soupray.cli.tables import print_json
    from soupray.operations import deleting
    from soupray.reporting.live import say
    from soupray.services.place import find_place

    if as_json and not (dry or yes):
        raise click.UsageError("--json asks nothing: add --yes, or --dry-run.")
    _, loaded = load_named(spec, home)
    store = find_place(loaded, home).open_store()
    deleting.refuse_driver(store, loaded.name)
    if dry:
        found = deleting.find_removal(store, loaded)
    else:
        if not yes:
            show_removal(deleting.find_removal(store, loaded), planned=True)
            click.confirm("Delete them? Nothing brings them back.", abort=True, err=True)
        found = deleting.delete(store, loaded, home)
    print_json(found) if as_json else show_removal(found, planned=dry)
    if loaded.tracking != "off" and not dry:
        say(f"note: the runs of {loaded.name} stay in MLflow: delete its experiment there.")
    if loaded.trackers and not dry:
        say(f"note: they stay in {', '.join(loaded.trackers)} too.")


_file = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def cluster() -> None:
    r"""Check files of a Ray cluster before they cost anything.

    \b
    soupray cluster validate cluster/*.yaml cluster/Dockerfile --spec mine.yaml
    """


@cluster.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_file)
@json_option
@click.option("--spec", type=_file, help="Can its trials ever run there?")
@click.option("--crd", type=_file, help="KubeRay's CRDs, in one file: nothing unknown passes.")
def validate(files: tuple[Path, ...], as_json: bool, spec: Path | None, crd: Path | None) -> None:
    r"""Say what is wrong with FILEs: launcher YAML, Kubernetes manifests, Dockerfile, policy.

    What Ray's own prepare and validate functions refuse, KubeRay's rules, node types against the
    spec's resources, one version of Ray and torch everywhere, secrets that are written out. Exit
    status 1 if something is wrong.

    \b
    soupray cluster validate cluster/ray-aws.yaml cluster/Dockerfile --spec mine.yaml
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.operations.cluster_files import validate as check
    from soupray.spec.sweep_spec import load

    problems = check(files, load(spec) if spec else None, crd)
    if as_json:
        print_json(problems)
    else:
        for problem in problems or [f"{len(files)} files are well."]:
            tell(problem)
    sys.exit(1 if problems else 0)


VERBS = (init, schema, up, down, ui, doctor, stop, publish, gc, delete, cluster)
