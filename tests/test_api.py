"""What `import soupray` offers to Python, held against the command line."""

import io
import json
import logging
import pickle
import re
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest
from board import BASIS, ENTRIES, SPEC
from conftest import ROOT, inside, mini_text, modules_after

import soupray
from soupray.core import errors
from soupray.core.progress import Progress
from soupray.reporting import live
from soupray.reporting.champion import Champion
from soupray.reporting.history import SoupRun
from soupray.reporting.messages import shown
from soupray.reporting.ranking import as_csv
from soupray.reporting.report import ReportedBoard
from soupray.spec.sweep_spec import parse
from soupray.spec.yaml import parse_yaml

KEYS = parse_yaml(mini_text(), "mini.yaml")


def as_printed(value: object) -> object:
    """A record as `--json` prints it."""
    return json.loads(msgspec.json.encode(value))


# ---- what is imported when


def test_a_name_imports_no_more_than_it_needs():
    slow = {"torch", "ray", "mlflow", "altair", "pandas", "rich", "scipy"}
    light = ("ConfigError", "Leaderboard", "SweepSpec", "check", "load_spec", "run_soup", "status")
    code = "import soupray\n" + "\n".join(f"soupray.{name}" for name in light)
    assert not slow & modules_after(code)


def test_all_errors_are_public_and_the_tab_key_knows_all_names():
    kinds = {k for k, v in vars(errors).items() if isinstance(v, type)}
    assert kinds == {n for n in soupray.__all__ if n in vars(errors)}
    assert all(getattr(soupray, kind) is getattr(errors, kind) for kind in kinds)
    assert dir(soupray) == sorted(soupray.__all__)


# ---- a spec in code


def test_a_spec_in_code_is_that_of_the_file():
    made, read = soupray.SweepSpec(**KEYS), parse(mini_text(), "mini.yaml")
    assert made == read
    assert made.digest == read.digest
    assert soupray.SweepSpec(**read.model_dump(mode="json")) == read
    assert pickle.loads(pickle.dumps(made)) == read
    assert isinstance(read, soupray.SweepSpec)


def test_tuples_and_paths_are_taken(tmp_path):
    (tmp_path / "names.yaml").write_text("".join(f"- {n}\n" for n in KEYS["task"]["classes"]))
    task = {**KEYS["task"], "templates": ("a {}.", "the {}."), "classes": tmp_path / "names.yaml"}
    made = soupray.SweepSpec(**{**KEYS, "task": task})
    assert made.task.classes == tuple(KEYS["task"]["classes"])
    assert made.task.templates == ("a {}.", "the {}.")


WRONG = {
    "an unknown key": {"trails": 4},
    "an unknown key inside": {"search": {**KEYS["search"], "sapce": {}}},
    "a wrong value": {"seed": -1},
    "a wrong type": {"threads": "two"},
    "several mistakes": {"name": "Mini", "threads": 0},
    "an unknown recipe": {"recipes": {"gredy": {}}},
    "an unknown option": {"recipes": {"greedy": {"acept": "ge"}}},
    "a name of no file": {"task": {**KEYS["task"], "classes": "nowhere.yaml"}},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_spec_in_code_has_the_message_of_the_file(wrong):
    keys = {**KEYS, **wrong}
    with pytest.raises(soupray.ConfigError) as in_code:
        soupray.SweepSpec(**keys)
    with pytest.raises(soupray.ConfigError) as in_file:
        parse(json.dumps(keys), "SweepSpec")
    said = re.sub(r"\bline \d+(, column \d+)?: |\b\d+:\d+: ", "", str(in_file.value))
    assert sorted(str(in_code.value).splitlines()) == sorted(said.splitlines())


ENDLESS: list = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.int64(3), r"np.int64\(3\) is of type int64. .* `.item\(\)` of a NumPy number"),
        ({"a", }, r"\{'a'\} is of type set"),
        ({("a",): 1}, "keys must be str"),
        (ENDLESS, "Circular reference"),
    ],
)  # fmt: skip
def test_what_no_file_could_hold_is_refused(value, said):
    with pytest.raises(soupray.ConfigError, match=f"^SweepSpec: {said}"):
        soupray.SweepSpec(**{**KEYS, "seed": value})


def test_a_spec_from_a_record_reads_no_file(tmp_path):
    """A worker need not have the files that the spec named: names are in it already."""
    task = {**KEYS["task"], "classes": str(tmp_path)}
    with pytest.raises(pydantic.ValidationError):
        soupray.SweepSpec.model_validate_json(json.dumps({**KEYS, "task": task}))


def test_what_is_no_spec_and_what_is_no_recipe_are_refused_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUPRAY_HOME", str(tmp_path / "home"))
    for wrong, said in [
        (KEYS, "type dict. .* makes one from a dict"),
        (tmp_path / "nowhere.yaml", "nowhere.yaml: cannot be read"),
    ]:
        with pytest.raises(soupray.ConfigError, match=said):
            soupray.run_sweep(wrong)
    for recipes, said in [
        ([], r"recipes = \[\]: write names"),
        (3, "recipes = 3: write names"),
        ("gredy", "unknown recipe 'gredy'. .* Did you mean 'greedy'"),
        (["greedy", "best_single"], "best_single always runs"),
        ({"greedy": {"acept": "ge"}}, "no option 'acept'"),
    ]:
        with pytest.raises(soupray.ConfigError, match=said):
            soupray.run_soup(SPEC, recipes)
    with pytest.raises(soupray.ConfigError, match="spec = "):
        soupray.run_soup([])
    with pytest.raises(soupray.ConfigError, match="pairs = 0: it is at least 1"):
        soupray.check(SPEC, pairs=0)
    assert list(tmp_path.iterdir()) == []


# ---- a leaderboard by hand


def made(entries=ENTRIES) -> soupray.Leaderboard:
    names = tuple(e.name for e in entries)
    champion = Champion(name=names[1], first=names[0], equals=names[:2], samples=100)
    run = SoupRun(key="k" * 32, made=0, recipes={}, ingredients=2, entries=10, champion=champion)
    board = ReportedBoard(spec=SPEC, entries=entries, basis=BASIS, run=run, details=None)
    return soupray.Leaderboard(board, Path("/nowhere"))


def test_a_leaderboard_says_what_to_take_and_has_all_entries():
    board = made()
    assert board.entries == ENTRIES
    assert board.best == ENTRIES[1]
    assert board.verdict.take == ENTRIES[1].name
    assert len(board) == 10
    assert repr(board) == f"<Leaderboard of digits: 10 entries, best {ENTRIES[1].name!r}>"
    assert str(board).startswith(f"Take {ENTRIES[1].name} (digits@champion), ")


def test_the_data_frame_is_the_table_of_the_file_by_hand():
    frame = made().to_pandas()
    assert list(frame.columns)[:6] == [
        "rank", "name", "recipe", "ingredients", "rank_accuracy", "held_out",
    ]  # fmt: skip
    whole = ["rank", "ingredients", "forward_passes", "size_bytes"]
    assert {str(frame[name].dtype) for name in whole} == {"int64"}
    assert all(pd.api.types.is_string_dtype(frame[name]) for name in ("name", "recipe"))
    assert {str(frame[n].dtype) for n in frame.columns if n not in [*whole, "name", "recipe"]} == {
        "float64"
    }
    first = frame.iloc[0]
    assert (first["rank"], first["held_out"], first["inverted"], first["noise"]) == (
        1, 0.91, 0.5, 0.6,
    )  # fmt: skip
    assert frame["rank_accuracy"].isna().all()  # there is no such split
    read = pd.read_csv(io.StringIO(as_csv(ENTRIES)))
    pd.testing.assert_frame_equal(frame, read, check_dtype=False, rtol=0, atol=1e-6)


def test_a_shift_may_have_the_name_of_a_column():
    entries = [msgspec.structs.replace(e, shifts={"name": e.test}) for e in ENTRIES]
    frame = made(entries).to_pandas()
    assert list(frame.columns).count("name") == 2
    assert frame["name"].iloc[0].tolist() == [ENTRIES[0].name, ENTRIES[0].test.accuracy]


def test_a_name_is_no_markup_in_a_notebook():
    bad = "<img src=x onerror=alert(1)>"
    first, second, *rest = ENTRIES
    shown = made([first, msgspec.structs.replace(second, name=bad), *rest])._repr_html_()
    assert bad not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") >= 2  # in the verdict, in the table
    assert "<script" not in shown
    assert "<html" not in shown


# ---- messages and progress


def test_messages_are_shown_for_the_time_of_a_call(capsys, monkeypatch):
    log = logging.getLogger("soupray")
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    before = list(log.handlers), log.level
    with shown(True) as show:
        logging.getLogger("soupray.somewhere").info("trained")
        logging.getLogger("soupray.somewhere").warning("a trial diverged")
        with Progress("choosing", 2, show) as progress:
            progress.advance(2)
    said = capsys.readouterr().err
    assert said == "trained\nnote: a trial diverged\nchoosing: 100 %, took 0 s\n"
    assert (log.handlers, log.level) == before
    with shown(False) as show:
        logging.getLogger("soupray.somewhere").warning("a trial diverged")
    assert show is None
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """What runs the cells of a notebook, in this process."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        InteractiveShell.clear_instance()


def test_a_notebook_shows_a_progress_in_place(shell, monkeypatch):
    from IPython.utils.capture import capture_output

    monkeypatch.setattr(live, "err", live.PlainConsole(force_jupyter=True))
    monkeypatch.setattr(live, "CELL_EVERY_S", -1.0)
    with capture_output() as captured, Progress("[red]choosing", 2, live.Bars()) as progress:
        progress.advance()
        progress.advance()
    texts = [one.data["text/plain"] for one in captured.outputs]
    assert [text.split(",")[0] for text in texts] == [
        "[red]choosing:   0 %", "[red]choosing:  50 %", "[red]choosing: 100 %",
        "[red]choosing: 100 %",
    ]  # fmt: skip
    assert captured.stdout == captured.stderr == ""


# ---- the main job


def test_the_store_says_the_same_to_python_as_to_the_command_line(run):
    board = soupray.load_leaderboard(run.spec, home=run.home)
    printed = json.loads(inside("rank", run.spec, *run.where, "--json").stdout)
    assert [as_printed(e) for e in board.entries] == printed["entries"]
    assert as_printed(board.verdict) == printed["verdict"]
    assert board.best.name == printed["verdict"]["take"]
    frame = pd.read_csv(run.output / "leaderboard.csv")
    pd.testing.assert_frame_equal(board.to_pandas(), frame, check_dtype=False, rtol=0, atol=1e-6)
    key = board.run.key
    assert soupray.load_leaderboard(run.spec, key[:8], home=run.home).run == board.run
    found = as_printed(soupray.status(soupray.load_spec(run.spec), home=run.home))
    assert found == json.loads(inside("status", run.spec, *run.where, "--json").stdout)


def test_figures_are_those_of_the_report(run):
    board = soupray.load_leaderboard(run.spec, home=run.home)
    page = (run.output / "report.html").read_text()
    for name in ("robustness", "greedy", "reliability"):
        assert f'id="chart-{name}"' in page
        drawn = json.loads(page.partition("const specs = ")[2].partition(";\n")[0])
        assert board.figure(name).to_dict() == drawn[f"chart-{name}"]
    with pytest.raises(soupray.ConfigError, match=r"no figure 'x'. It has: robustness, "):
        board.figure("x")


def test_any_entry_of_a_leaderboard_is_loaded(run):
    board = soupray.load_leaderboard(run.spec, home=run.home)
    assert board.load("greedy", device="cpu").name == "greedy"
    with pytest.raises(soupray.NotFound, match=r"has no entry 'gredy'. It has: .*greedy"):
        board.load("gredy")


def test_the_notebook_runs_and_finds_the_main_job(fresh, shell, monkeypatch, tmp_path):
    """Its cells, as a notebook runs them: the sweep is the main job's, so nothing is trained."""
    from IPython.utils.capture import capture_output

    monkeypatch.setenv("SOUPRAY_HOME", str(fresh.home))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            with capture_output() as captured:
                done = shell.run_cell("".join(cell["source"]))
            done.raise_error()
            assert done.success
            if done.result is not None:
                shown.append(shell.display_formatter.format(done.result)[0])
            # What the page keeps is there again, and more would be missing from it.
            kept = {one["output_type"] for one in cell["outputs"]}
            assert ("execute_result" in kept) == (done.result is not None), cell["id"]
            assert ("stream" in kept) == ("Did you mean" in captured.stdout), cell["id"]
    found = shell.user_ns
    assert found["spec"].digest == parse(fresh.spec.read_text(), "mini.yaml").digest
    assert (found["report"].found, found["report"].trained) == (4, 0)
    board = found["board"]
    entries = json.loads(json.dumps([as_printed(e) for e in board.entries]))
    assert json.loads(Path("results/mini/leaderboard.json").read_text()) == entries
    # The main job has further recipes, which --all leaves out.
    known = {e["name"]: e for e in json.loads((fresh.output / "leaderboard.json").read_text())}
    both = [e for e in entries if e["name"] in known]
    assert len(both) > 12
    assert both == [known[e["name"]] for e in both]
    assert found["model"].predict(found["images"]) == ["zero", "one", "two", "three", "four"]
    assert any(board.best.name in data.get("text/html", "") for data in shown)
    assert any("<svg" in data.get("image/svg+xml", "") for data in shown)
    # The command line goes on from the copy of the spec that was made in code.
    kept = inside("status", fresh.home / "sweeps" / "mini.yaml", *fresh.where, "--json")
    assert json.loads(kept.stdout)["complete"] == 4
