"""The verbs that bring models in and take results out: import, pull, rebuild, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from soupray.cli.options import (
    home_option,
    json_option,
    load_named,
    spec_argument,
    spec_of,
    what_argument,
)

if TYPE_CHECKING:
    from soupray.operations.exporting import Format

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command("import")
@spec_of(required=True)
@click.argument("files", nargs=-1, required=True)
@home_option
@json_option
def import_(spec: Path, files: tuple[str, ...], home: Path, as_json: bool) -> None:
    r"""Add checkpoints that were trained elsewhere to SPEC's pool.

    Files are state dicts (.pt, .safetensors) of the architecture in SPEC as open_clip, timm or
    transformers name their tensors, those of the published model soups, or folders of Hugging
    Face. All tensors must match. Each is evaluated on held-out data, as a trial is. A file that
    does not fit is named and left out, and the exit status is 1.

    \b
    soupray import mine.yaml 'checkpoints/*.pt'
    soupray soup mine.yaml --greedy
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.operations.importing import run_import
    from soupray.reporting.live import say

    _, loaded = load_named(spec, home)
    made = []
    try:
        for one in run_import(loaded, home, files):
            made.append(one)
            score = f"{100 * one.held_out.accuracy:.1f} ± {100 * one.held_out.standard_error:.1f} %"
            said = f"{one.trial.key}  held-out {score}  {one.trial.hparams['file']}"
            (say if as_json else tell)(said)
    finally:  # files that cannot be imported do not stop the others
        if as_json and made:
            print_json(made)


@click.command()
@what_argument
@home_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["library", "onnx", "torch", "hub", "folder"]),
    default="library",
    show_default=True,
    help="library: what open_clip, timm or transformers load. onnx, torch: one graph with its "
    "normalisation. hub: library, with a model card for Hugging Face. folder: what soupray loads "
    "and serves without the store.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder. Default: beside a recipe file, else in results/SWEEP.",
)
@json_option
def export(what: str, home: Path, kind: Format, output: Path | None, as_json: bool) -> None:
    r"""Write the model WHAT for other programs.

    WHAT is a recipe file, a model folder, SWEEP:ENTRY, SWEEP@champion or models:/NAME@ALIAS. An
    ensemble can be a graph only. A graph is compared with soupray on held-out samples, and is
    refused if its logits differ.

    \b
    soupray export results/digits/greedy.recipe.json --output greedy
    soupray export digits@champion --format onnx
    soupray export digits:greedy --format hub --output to_upload
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.operations.exporting import export as write
    from soupray.reporting.live import Bars, say

    done = write(what, home, kind, output, Bars())
    for note in done.notes:
        say(f"note: {note}")
    if as_json:
        print_json(done)
        return
    tell(f"{done.folder}/ ({', '.join(done.files)})")
    tell(done.loads)
    if (parity := done.parity) is not None:
        tell(
            f"logits differ from soupray's by at most {parity.largest:.2g} on {parity.samples} "
            f"{parity.inputs} samples (allowed: {parity.allowed:.2g}); the same class for "
            f"{parity.same_class}"
        )


@click.command()
@spec_argument
@home_option
@click.option("--output", type=click.Path(path_type=Path, file_okay=False))
def pull(spec: Path | None, home: Path, output: Path | None) -> None:
    """Fetch SPEC's results from the store: leaderboard, figures, recipes, the soup."""
    from soupray.cli.console import tell
    from soupray.reporting.results import pull as fetch

    _, loaded = load_named(spec, home)
    folder = output or Path("results") / loaded.name
    for path in fetch(loaded, home, folder):
        tell(str(path))


@click.command()
@what_argument
@home_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File. Default: beside a recipe file, else in results/SWEEP.",
)
@json_option
def rebuild(what: str, home: Path, output: Path | None, as_json: bool) -> None:
    r"""Make the weights of WHAT again, byte for byte.

    WHAT is a recipe file, a model folder, SWEEP:ENTRY, SWEEP@champion or models:/NAME@ALIAS. The
    ingredients are read from the store.

    \b
    soupray rebuild results/digits/greedy.recipe.json
    soupray rebuild digits@champion --output champion.safetensors
    """
    from soupray.cli.console import tell
    from soupray.cli.tables import print_json
    from soupray.inference.what import find_recipe
    from soupray.operations.exporting import beside
    from soupray.reporting.recipe_file import rebuild as make
    from soupray.reporting.recipe_file import spec_of
    from soupray.services.place import find_place

    recipe = find_recipe(what, home)
    target = output or beside(what, recipe, ".safetensors")
    sha256 = make(recipe, find_place(spec_of(recipe), home), target)
    if as_json:
        print_json({"file": str(target), "sha256": sha256, "recorded": recipe.sha256})
        return
    same = (
        "the same bytes as recorded"
        if recipe.sha256
        else "an older version of soupray, which recorded the digest of one entry only, wrote this "
        "recipe: its ingredients are verified, its bytes have nothing to be compared with. Run "
        "`soupray soup` again to record it"
    )
    tell(f"{target}  sha256 {sha256} ({same})")


VERBS = (import_, pull, rebuild, export)
