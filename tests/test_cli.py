"""The command line as a user meets it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import HANG_S, ROOT, inside, mini_text, modules_after, soupray

from soupray.cli import cli
from soupray.recipes import RECIPES
from soupray.store import objects


def test_help_and_import_load_nothing_heavy():
    heavy = {"numpy", "torch", "ray", "mlflow", "boto3", "scipy", "obstore", "pydantic"}
    assert not heavy & modules_after("import soupray")
    shown = "from soupray.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not heavy & modules_after(shown)
    recipes = "import soupray.recipes.greedy, soupray.recipes.wise_ft, soupray.recipes.uniform"
    assert not {"torch", "ray", "mlflow", "boto3", "obstore"} & modules_after(recipes)
    # The driver of a sweep has Tune; the models are on the workers.
    driver = "import soupray.sweep.run, soupray.distributed.tune"
    assert not {"torch", "altair", "mlflow"} & modules_after(driver)


def test_every_command_has_help_and_takes_home_if_it_needs_one():
    for name, command in cli.commands.items():
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0
        assert command.help
        assert ("--home" in shown.output) == (name not in ("recipes", "cluster", "init", "schema"))


def test_examples_in_help_are_lines_of_their_own():
    shown = CliRunner().invoke(cli, ["sweep", "--help"]).output
    assert "  soupray sweep sweeps/digits.yaml --dry-run" in shown.splitlines()
    verbs = [CliRunner().invoke(cli, [name, "--help"]).output for name in cli.commands]
    assert not any("\\b" in text or "\b" in text for text in [shown, *verbs])


def test_the_command_line_is_what_it_was():
    """A new verb or option is a decision: make it here too."""
    options = {
        name: sorted(o for p in command.params for o in p.opts if o.startswith("--"))
        for name, command in cli.commands.items()
    }
    recipes = [f"--{r.name.replace('_', '-')}" for r in RECIPES if r.kind != "baseline"]
    assert recipes == [
        "--uniform", "--greedy", "--replacement", "--pruned", "--proxy", "--greedy-similar",
        "--slerp", "--soce", "--learned", "--learned-by-layer", "--learned-signed", "--cma-es",
        "--fisher", "--model-stock", "--task-arithmetic", "--ties", "--dare", "--wise-ft",
        "--lines", "--ensemble", "--greedy-ensemble", "--ose", "--vrf", "--dawin",
    ]  # fmt: skip
    assert options == {
        "demo": ["--home"],
        "sweep": ["--address", "--dry-run", "--home", "--json", "--measure"],
        "soup": sorted(
            [
                *("--address", "--all", "--all-columns", "--calibrated", "--home", "--json"),
                *("--output", "--partial", "--sort", "--yes", *recipes),
            ]
        ),
        "recipes": ["--json"],
        "report": ["--home", "--open", "--output"],
        "rank": ["--all-columns", "--calibrated", "--home", "--json", "--list", "--sort"],
        "sweeps": ["--home", "--json"],
        "trials": ["--home", "--json", "--sort"],
        "show": ["--home", "--json"],
        "why": ["--home", "--json"],
        "predict": [
            "--address",
            "--batch-size",
            "--calibrated",
            "--column",
            "--device",
            "--home",
            "--json",
            "--output",
            "--probabilities",
            "--texts",
            "--top",
        ],
        "serve": ["--batch-size", "--calibrated", "--gpus", "--home", "--port", "--replicas"],
        "status": ["--home", "--json"],
        "watch": ["--every", "--home"],
        "logs": ["--home", "--json", "--tail"],
        "cluster": [],
        "gc": ["--dry-run", "--home", "--json", "--older-than"],
        "stop": ["--home", "--json", "--wait"],
        "delete": ["--dry-run", "--home", "--json", "--yes"],
        "check": ["--address", "--home", "--json", "--pairs", "--partial"],
        "diagnose": [
            "--address",
            "--annotations",
            "--baseline",
            "--dry-run",
            "--home",
            "--json",
            "--only",
            "--output",
            "--pairs",
            "--partial",
            "--with",
        ],
        "pull": ["--home", "--output"],
        "publish": ["--home"],
        "rebuild": ["--home", "--json", "--output"],
        "import": ["--home", "--json"],
        "export": ["--format", "--home", "--json", "--output"],
        "schema": ["--output"],
        "init": ["--image-folder", "--json", "--model", "--output", "--text-csv"],
        "up": ["--home"],
        "down": ["--home"],
        "ui": ["--home", "--open", "--port"],
        "doctor": ["--home", "--json"],
    }


def test_a_bad_spec_ends_with_status_2_and_one_message(tmp_path):
    spec = tmp_path / "bad.yaml"
    spec.write_text(mini_text(**{"threads: 1": "thread: 1"}))
    done = soupray("sweep", spec, "--home", tmp_path / "h", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {spec}: line 7, column 1: thread: unknown key.")
    assert "Traceback" not in done.stderr
    shown = soupray("--debug", "sweep", spec, "--home", tmp_path / "h", check=False)
    assert "Traceback" in shown.stderr


def test_a_dry_run_prints_trials_bytes_and_forward_passes_and_stores_nothing(tmp_path):
    spec = tmp_path / "mini.yaml"
    spec.write_text(mini_text(**{"  wise_ft: {}\n": "  wise_ft: {}\n"}))  # no more recipes
    done = soupray("sweep", spec, "--home", tmp_path / "h", "--dry-run", "--json")
    shown = json.loads(done.stdout)
    assert len(shown["trials"]) == shown["cost"]["trials"] == 4
    epochs = sum(t["hparams"]["epochs"] for t in shown["trials"])
    # 1400 training images an epoch; 200 held-out images an epoch and once more as stored.
    assert shown["cost"]["training_samples"] == 1400 * epochs
    assert shown["cost"]["held_out_samples"] == 200 * (epochs + 4)
    # 4 checkpoints with their logits, and theta_0; then the soup, and logits: 10 classes, 4 bytes,
    # of 1 + 1 + 1 + 38 models on held-out data, of 4 + 3 + 10 on test and on two shifts
    test = (shown["cost"]["reported_samples"] // 17) // 3
    assert shown["cost"]["reported_samples"] == 17 * 3 * test
    soup = shown["cost"]["soup_stored_bytes"] - 40 * (41 * 200 + 17 * 3 * test)
    assert shown["cost"]["soup_held_out_samples"] == 200 * (41 + 3)
    assert soup == pytest.approx(3.35e6, rel=0.02)
    per_model = shown["cost"]["stored_bytes"] / 5
    assert per_model == pytest.approx(3.35e6, rel=0.02)
    assert not (tmp_path / "h" / "stack").exists()


def test_the_spec_is_found_in_the_documented_order(tmp_path, monkeypatch):
    from soupray.services.home import find_spec

    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SOUPRAY_SPEC", raising=False)
    assert find_spec(None, tmp_path)[0] == ROOT / "sweeps" / "digits.yaml"
    newest = tmp_path / "sweeps" / "mine.yaml"
    newest.parent.mkdir()
    newest.write_text("")
    assert find_spec(None, tmp_path) == (newest, "the newest sweep of this home")
    monkeypatch.setenv("SOUPRAY_SPEC", "/named.yaml")
    assert str(find_spec(None, tmp_path)[0]) == "/named.yaml"
    assert find_spec(newest, tmp_path)[0] == newest
    assert find_spec(Path("mine"), tmp_path) == (newest, "the sweep mine of this home")
    assert find_spec(Path("other"), tmp_path)[0] == Path("other")  # its reading says what is wrong
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")  # a file goes first
    assert find_spec(Path("mine"), tmp_path) == (Path("mine"), "given")


def test_doctor_says_a_line_for_each_check(run):
    done = inside("doctor", run.spec, *run.where)
    checks = ["versions", "home", "services", "credentials", "bucket", "mlflow", "ray", "gpu"]
    assert all(f"ok    {check}" in done.stdout for check in checks)
    assert "a second create is refused" in " ".join(done.stdout.split())
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_doctor_names_what_is_wrong_and_exits_1(tmp_path, monkeypatch):
    edits = {
        "storage: embedded": "storage: s3://nowhere",
        "tracking: embedded": "tracking: http://127.0.0.1:9\ntrackers: {away:Mine: {}}",
    }
    (tmp_path / "bad.yaml").write_text(mini_text(**edits))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(objects, "RETRY_S", 1)
    home = tmp_path / "h"
    done = inside("doctor", tmp_path / "bad.yaml", "--home", home, "--json", check=False)
    assert done.returncode == 1
    seen = {c["what"]: c["seen"] for c in json.loads(done.stdout) if not c["ok"]}
    assert "there is no module 'away'" in seen.pop("trackers")
    assert seen.keys() == {"credentials", "bucket", "mlflow", "ray"}
    assert all("127.0.0.1:9" in said for said in seen.values())
    assert "Ray at 127.0.0.1:9 does not answer" in seen["ray"]
    assert "hidden-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(("code", "status"), [(15, 143), (143, 143), (2, 2), (0, 0)])
def test_sigterm_is_told_whoever_handled_it(code, status):
    """While Ray starts, its handler exits with 15, the number of the signal; ours with 128 + 15."""
    program = f"import sys, soupray.cli as c; c.cli = lambda **k: sys.exit({code}); c.main([])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr.startswith("terminated. What is stored is kept") == (status == 143)


def test_sigterm_in_a_callback_that_ignores_exceptions_ends_the_process_too():
    program = (
        "import signal, time, weakref, soupray.cli as c\n"
        "def work(**k):\n"
        "    thing = type('Thing', (), {})()\n"
        "    seen = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))\n"
        "    del thing\n"
        "    time.sleep(60)\n"
        "c.cli = work; c.main([])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 143
    assert done.stderr.splitlines() == [
        "terminated. What is stored is kept: the same command goes on."
    ]


STUCK = """
import signal, sys, threading, time
from soupray import cli
cli.AN_END_S = 0.5
signal.signal(signal.SIGTERM, cli._end)
try:
    print("ready", flush=True)
    time.sleep(600)
finally:  # a library that waits for ever while the process ends
    never = threading.Lock()
    never.acquire()
    never.acquire()
"""


def test_an_end_that_gets_stuck_is_an_end_all_the_same():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == -signal.SIGTERM


IMPORTING = """
import signal, sys, time
from soupray import cli
signal.signal(signal.SIGALRM, cli._end)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "nothing_here":  # the frame below is of the import system
            cli._end(signal.SIGTERM, sys._getframe(1))
        return None
sys.meta_path.insert(0, Finder())
try:
    import nothing_here
except ModuleNotFoundError:
    print("the import went on", flush=True)
time.sleep(600)
"""


def test_an_end_does_not_interrupt_the_import_system_but_follows():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.stdout == "the import went on\n", done.stderr
    assert done.returncode == 128 + signal.SIGTERM
