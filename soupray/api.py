"""What `import soupray` offers to Python: the jobs of the command line, as functions.

`soupray` imports this module when a name of it is used first. What takes time to import is imported
in the functions: `soupray.status` needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soupray.core.errors import ConfigError
from soupray.reporting.messages import shown
from soupray.services.home import home_at

if TYPE_CHECKING:
    import pandas as pd

    from soupray.core.findings import Report
    from soupray.diagnostics.diagnose import Diagnostics
    from soupray.inference.model import Model
    from soupray.operations.status import Status
    from soupray.recipes import Wanted
    from soupray.reporting.history import SoupRun
    from soupray.reporting.ranking import Entry
    from soupray.reporting.report import ReportedBoard
    from soupray.reporting.verdict import Verdict
    from soupray.spec.sweep_spec import SweepSpec
    from soupray.sweep.run import SweepReport

    Spec = SweepSpec | str | Path
    Recipes = str | Sequence[str] | Mapping[str, Mapping[str, str | int | float]]


def load_spec(path: str | Path) -> SweepSpec:
    """Read the spec of a sweep from a YAML file.

    Args:
        path: of the file.

    Returns:
        The spec; `SweepSpec(...)` makes one in code.

    Raises:
        ConfigError: the spec is not valid; the message has file, line, value and what is allowed.
    """
    return _read(path, home_at(None))[0]


def run_sweep(
    spec: Spec,
    *,
    home: str | Path | None = None,
    address: str | None = None,
    show: bool = True,
) -> SweepReport:
    """Train the trials of a sweep that are not in its store, as `soupray sweep` does.

    It may be interrupted: the same call goes on.

    Args:
        spec: the sweep, or the path of its YAML file.
        home: folder for the state of this machine: embedded servers, caches. None: SOUPRAY_HOME,
            else ~/.local/share/soupray.
        address: address of a Ray cluster; None for RAY_ADDRESS, else Ray starts on this machine.
        show: print messages and progress to standard error. False: the messages go to the log
            `soupray` only.

    Returns:
        Numbers of trials by how they ended.

    Raises:
        ConfigError: the spec or the environment cannot work.
        StoreError: the store cannot be reached, or another driver holds the sweep.
        TrialError: trials failed or did not finish. Finished ones are kept.
    """
    from soupray.sweep import run

    at = home_at(home)
    loaded, file = _read(spec, at)
    with shown(show) as bars:
        report = run.run_sweep(loaded, at, address, bars, file=file)
    run.check_report(report)
    return report


def run_soup(
    spec: Spec | Sequence[Spec],
    recipes: Recipes | None = None,
    *,
    home: str | Path | None = None,
    address: str | None = None,
    partial: bool = False,
    output: str | Path | None = None,
    show: bool = True,
) -> Leaderboard:
    """Average the trials of a sweep, choose on held-out data and report, as `soupray soup` does.

    A second call evaluates nothing again.

    Args:
        spec: the sweep, or the path of its YAML file. Several on the same data are one pool for
            ensembles.
        recipes: names of recipes; or their options by name; or `"all"`. None: those of the spec.
        home: as in `run_sweep`.
        address: as in `run_sweep`.
        partial: go on without the trials that are missing.
        output: folder for the files: leaderboard, report, figures, recipes, weights of the
            champion. None: `results/NAME`.
        show: as in `run_sweep`.

    Returns:
        The leaderboard, which the store keeps.

    Raises:
        ConfigError: an unknown recipe or option, or one that these specs do not allow.
        EvaluationError: no ingredients, some are missing and `partial` is false, or NaN weights.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    from soupray.operations.retention import after_soup
    from soupray.reporting.results import board_of, finish_soup
    from soupray.soup import run

    at = home_at(home)
    several = spec if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    loaded = [_read(one, at)[0] for one in several]
    if not loaded:
        raise ConfigError("spec = []: give a spec, or several on the same data.")
    wanted, joint = _wanted(loaded, recipes), run.joint(loaded)
    folder = Path("results", joint.name) if output is None else Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)  # before anything is computed
    with shown(show) as bars:
        result = run.run_soup(loaded, at, address, wanted, run.Allowed(partial), bars)
        finish_soup(result, joint, at, folder)
        after_soup(loaded, at)
    return Leaderboard(board_of(result, joint), at)


def load_leaderboard(
    spec: Spec, run: str | None = None, *, home: str | Path | None = None
) -> Leaderboard:
    """Read a leaderboard from the store, as `soupray rank` does. Nothing is computed.

    Args:
        spec: the sweep, or the path of its YAML file.
        run: key of a run of `run_soup` or `soupray soup`, or its first characters
            (`soupray rank --list`). None: the newest one.
        home: as in `run_sweep`.

    Raises:
        NotFound: there is no such leaderboard, or an older soupray made it.
    """
    from soupray.reporting.report import stored_board

    at = home_at(home)
    return Leaderboard(stored_board(_read(spec, at)[0], at, run), at)


def check(
    spec: Spec,
    *,
    home: str | Path | None = None,
    address: str | None = None,
    partial: bool = False,
    pairs: int = 8,
    show: bool = True,
) -> Report:
    """Say which trials would hurt a soup, and why, as `soupray check` does: on held-out data only.

    Args:
        spec: the sweep, or the path of its YAML file.
        home: as in `run_sweep`.
        address: as in `run_sweep`.
        partial: go on without the trials that are missing.
        pairs: pairs of trials whose mean is evaluated, at most.
        show: as in `run_sweep`.

    Returns:
        The report: `averageable`, `verdict` in words, `findings`.

    Raises:
        EvaluationError: no ingredients, or some are missing and `partial` is false.
        IncompatibleWeights: a trial did not start from the theta_0 of the sweep.
        StoreError: the store cannot be reached.
    """
    from soupray.soup.check import run_check

    at = home_at(home)
    loaded = _read(spec, at)[0]
    with shown(show) as bars:
        return run_check(
            loaded, at, address, partial=partial, pairs=_at_least_one(pairs), show=bars
        )


def diagnose(
    spec: Spec,
    *,
    home: str | Path | None = None,
    address: str | None = None,
    partial: bool = False,
    only: Sequence[str] = (),
    pairs: int = 20,
    baseline: str | Path | None = None,
    annotations: str | Path | Sequence[str | Path] = (),
    others: Sequence[Spec] = (),
    show: bool = True,
) -> Diagnostics:
    """Measure how the models differ and what averaging makes of it, as `soupray diagnose` does.

    Args:
        spec: the sweep, or the path of its YAML file.
        home: as in `run_sweep`.
        address: as in `run_sweep`.
        partial: go on without the trials that are missing.
        only: names of measures; none for all.
        pairs: pairs of trials to measure, at most.
        baseline: CSV file of standard models' accuracies, for effective robustness; None: the line
            of the pool's own trials.
        annotations: JSON or CSV files that say which answers are right, or how bad mistakes are;
            none: the labels say it.
        others: sweeps on the same data, whose models are compared with these.
        show: as in `run_sweep`.

    Returns:
        The numbers of each measure, and why others do not apply.

    Raises:
        ConfigError: there is no such measure, or a file is not what it should be.
        EvaluationError: no ingredients, or NaN weights.
        IncompatibleWeights: ingredients that cannot be averaged.
        StoreError: the store cannot be reached.
    """
    from soupray.diagnostics.diagnose import Asked, read_options, run_diagnose

    at = home_at(home)
    loaded, *compared = (_read(one, at)[0] for one in (spec, *others))
    files = [annotations] if isinstance(annotations, str | Path) else annotations
    options = read_options(
        _at_least_one(pairs), None if baseline is None else Path(baseline), [*map(Path, files)]
    )
    asked = Asked(only, partial, options, compared)
    with shown(show) as bars:
        return run_diagnose(loaded, at, address, asked, bars)


def status(spec: Spec, *, home: str | Path | None = None) -> Status:
    """Say how a sweep stands, from the store alone, as `soupray status` does.

    Args:
        spec: the sweep, or the path of its YAML file.
        home: as in `run_sweep`.

    Returns:
        Numbers of trials by state, the best one so far, and who drives.

    Raises:
        NotFound: no trial was planned with this spec yet.
        StoreError: the store cannot be reached.
    """
    from soupray.operations.status import find_status

    at = home_at(home)
    return find_status(_read(spec, at)[0], at)


class Leaderboard:
    """A leaderboard: what the recipes made of a sweep, best first on held-out data.

    `run_soup` and `load_leaderboard` return it. In a notebook it is shown as the verdict and a
    table; `print` shows the verdict.

    Attributes:
        spec: the sweep.
        run: the run that made it: its key, when, with which recipes.
        entries: the entries, best first.
    """

    spec: SweepSpec
    run: SoupRun
    entries: list[Entry]

    def __init__(self, board: ReportedBoard, home: Path) -> None:
        self._board, self._home = board, home
        self.spec, self.run, self.entries = board.spec, board.run, list(board.entries)

    @property
    def best(self) -> Entry:
        """The entry to take, the champion: see `verdict`. It need not be the first one."""
        return next(e for e in self.entries if e.name == self.run.champion.name)

    @property
    def verdict(self) -> Verdict:
        """What to take, what it gains over the best single model, and what that costs."""
        from soupray.reporting.verdict import verdict

        return verdict(self.entries, self.run.champion, self.spec.name, self.spec.metric)

    def to_pandas(self) -> pd.DataFrame:
        """Return the entries as a data frame: the columns of `leaderboard.csv`, not rounded."""
        import pandas as pd

        from soupray.reporting.ranking import as_table

        columns, rows = as_table(self.entries)
        return pd.DataFrame(rows, columns=columns).astype({"rank_accuracy": float})

    def figure(self, name: str = "robustness") -> Any:
        """Return a figure of the report as a chart of Altair.

        Args:
            name: `robustness`, `splits`, `lines`, `greedy`, `reliability`, `classes`, `confusion`,
                `parallel`, `coefficients`, `worth` or `importance`; a leaderboard has those that
                its data and recipes give.

        Returns:
            The chart, which a notebook shows; `save("figure.html")` writes it.

        Raises:
            ConfigError: this leaderboard has no such figure.
        """
        from soupray.reporting.report import charts_of
        from soupray.reporting.vega import as_altair

        drawn = charts_of(self._board)
        if name not in drawn:
            raise ConfigError(
                f"this leaderboard of {self.spec.name} has no figure {name!r}. It has: "
                f"{', '.join(drawn)}."
            )
        return as_altair(drawn[name])

    def load(
        self,
        entry: str | None = None,
        *,
        device: str | None = None,
        batch_size: int | None = None,
        calibrated: bool = False,
    ) -> Model:
        """Load the model of an entry of this leaderboard, also if there is a newer one.

        Args:
            entry: its name; None for the champion.
            device: as in `soupray.load`.
            batch_size: as in `soupray.load`.
            calibrated: as in `soupray.load`.

        Raises:
            NotFound: there is no such entry, or a checkpoint is no longer in the store.
        """
        from soupray.inference.load import load_found
        from soupray.inference.what import Found
        from soupray.reporting.results import recipe_of

        recipe = recipe_of(
            self._board, self._home, self.run.champion.name if entry is None else entry
        )
        model = load_found(Found(recipe), self._home, device, batch_size)
        return model.calibrated() if calibrated else model

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def __repr__(self) -> str:
        """Return one line."""
        return f"<Leaderboard of {self.spec.name}: {len(self)} entries, best {self.best.name!r}>"

    def __str__(self) -> str:
        """Return the verdict."""
        return "\n".join(self.verdict.lines)

    def _repr_html_(self) -> str:
        """Return the verdict and the table, for a notebook."""
        from soupray.reporting.report import render_board

        return render_board(self._board)


def _read(spec: Spec, home: Path) -> tuple[SweepSpec, Path | None]:
    """Return a spec, and the file it is from, if it is from one."""
    from soupray.spec.files import path_of
    from soupray.spec.sweep_spec import SweepSpec, load

    if isinstance(spec, SweepSpec):
        return spec, None
    if not isinstance(spec, str | Path):
        raise ConfigError(
            f"a spec cannot be of type {type(spec).__name__}. Give a soupray.SweepSpec, or the "
            "path of a YAML file; soupray.SweepSpec(**keys) makes one from a dict."
        )
    file = path_of(str(spec), "spec")
    return load(file, memory=home / "libraries"), file


def _wanted(specs: Sequence[SweepSpec], recipes: Recipes | None) -> Wanted:
    """Return the options of the recipes to run, by name."""
    from soupray.recipes import check_recipes, load_recipes
    from soupray.soup.run import chosen_recipes

    if recipes is None or recipes == "all":
        return chosen_recipes(specs, [], everything=recipes is not None)
    if not recipes or not isinstance(recipes, str | Sequence | Mapping):
        raise ConfigError(
            f"recipes = {recipes!r}: write names, options by name, or 'all'. Left out: the recipes "
            "of the spec."
        )
    names = [recipes] if isinstance(recipes, str) else list(recipes)
    check_recipes({name: {} for name in names}, "recipes")
    chosen = chosen_recipes(specs, names, everything=False)
    if isinstance(recipes, Mapping):
        chosen = {name: dict(recipes[name]) for name in chosen}
        load_recipes(chosen)
    return chosen


def _at_least_one(pairs: int) -> int:
    """Return the number of pairs. Raises ConfigError if it is below 1."""
    if pairs < 1:
        raise ConfigError(f"pairs = {pairs}: it is at least 1.")
    return pairs
