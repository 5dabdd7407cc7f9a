"""The verbs that bring models in and take results out: import, pull, rebuild, export."""

from __future__ import annotations

from pathlib import Path

import click

from soupray.cli.options import home_option, json_option, load_named, spec_argument

# Imports that take time are made inside the commands: `soupray --help` is instant.


@click.command("import")
@click.argument("spec", type=click.Path(path_type=Path))
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
    from soupray.cli.console import say, tell
    from soupray.cli.tables import print_json
    from soupray.operations.importing import run_import

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
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@home_option
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Default: beside RECIPE."
)
def export(recipe: Path, home: Path, output: Path | None) -> None:
    r"""Write the soup of RECIPE as open_clip, timm or transformers load it.

    \b
    soupray export results/digits/greedy.recipe.json --output greedy
    """
    from soupray.cli.console import tell
    from soupray.reporting.recipe_file import export as write
    from soupray.reporting.recipe_file import read_recipe, spec_of
    from soupray.services.place import find_place

    read = read_recipe(recipe)
    folder = output or recipe.with_name(recipe.name.removesuffix(".recipe.json"))
    loads = write(read, find_place(spec_of(read), home), folder)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    tell(f"{folder}/ ({names})")
    tell(loads)


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
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@home_option
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: beside RECIPE."
)
def rebuild(recipe: Path, home: Path, output: Path | None) -> None:
    r"""Make the weights of RECIPE again, byte for byte.

    \b
    soupray rebuild results/digits/greedy.recipe.json
    """
    from soupray.cli.console import tell
    from soupray.reporting.recipe_file import read_recipe, spec_of
    from soupray.reporting.recipe_file import rebuild as make
    from soupray.services.place import find_place

    read = read_recipe(recipe)
    target = output or recipe.with_name(recipe.name.removesuffix(".recipe.json") + ".safetensors")
    sha256 = make(read, find_place(spec_of(read), home), target)
    same = (
        "the same bytes as recorded"
        if read.sha256
        else "an older version of soupray, which recorded the digest of one entry only, wrote this "
        "recipe: its ingredients are verified, its bytes have nothing to be compared with. Run "
        "`soupray soup` again to record it"
    )
    tell(f"{target}  sha256 {sha256} ({same})")


VERBS = (import_, pull, rebuild, export)
