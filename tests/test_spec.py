"""Specs and plans: every mistake gets one message, and the plan depends on the spec alone."""

import itertools
import json
import math
from pathlib import Path

import msgspec
import pytest
from conftest import inside

from soupray.core.errors import ConfigError
from soupray.core.records import Basis, CheckpointRef, Split, decode, encode
from soupray.core.trials import Trial
from soupray.search.plan import plan, trials_of
from soupray.spec.examples import EXAMPLES
from soupray.spec.space import Dimension
from soupray.spec.sweep_spec import SweepSpec, load, parse
from soupray.spec.yaml import parse_yaml

DIGITS = Path(__file__).parent.parent / "sweeps" / "digits.yaml"
TEXT = DIGITS.read_text()


def edited(old: str, new: str) -> SweepSpec:
    assert old in TEXT
    return parse(TEXT.replace(old, new), "x.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("threads:", "thread:", "thread: unknown key. Did you mean 'threads'? Allowed: name, seed"),
        ("gpu: 0", "gpus: 0", "resources.gpus: unknown key. Did you mean 'gpu'? Allowed: cpu, gpu"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {log_uniform: [2e-3, 5e-5]}", "is empty"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {log_uniform: [0.0, 1.0]}", "starts above 0"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {log_uniform: 3}", "search.space.lr.log_uniform"),
        (
            "epochs: {integer: [5, 15]}",
            "epochs: {integer: [5, 15], uniform: [1, 2]}",
            "exactly one",
        ),
        ("epochs: {integer: [5, 15]}", "epochs: {integer: [0, 15]}", "epochs = 0; allowed is 1"),
        ("epochs: {integer: [5, 15]}", "epoch: 3", "search.space.epoch: unknown key"),
        ("batch_size: 20", "batch_size: -1", "search.space.batch_size: -1 is not allowed"),
        ("trials: 16", "trials: many", "search.trials: 'many' is not allowed"),
        ("trials: 16\n", "\n", "search.trials: required"),
        ("seed: 0\n", "seed: true\n", "seed: True is not allowed"),
        ("[inverted,", "[invertd,", "'inverted', 'rotated', 'noise', 'low_contrast'"),
        ("storage: embedded", "storage: gs://x", "write embedded, s3://bucket/prefix or file:///"),
        ("tracking: embedded", "tracking: yes", "'yes' is not allowed"),
        ("name: digits", "name: Digits!", "lower-case"),
        ('"a handwritten {}."', '"a handwritten digit."', "needs one {}"),
        (
            "greedy:",
            "greedi:",
            "unknown recipe 'greedi'. Known recipes: anchor, best_single, update_bn, uniform",
        ),
        ('"a handwritten {}."', '"a {} {}."', "needs one {}"),
        ("threads:", "Threads:", "Threads: unknown key. Did you mean 'threads'?"),
        ("threads:", "my-threads:", "my-threads: unknown key."),
        ("sampler:", "sam-pler:", "search.sam-pler: unknown key. Did you mean 'sampler'?"),
        ("seed: 0\n", "seed: 0\nint: 1\n", "int: unknown key."),
        (
            "epochs: {integer: [5, 15]}",
            "epochs: {uniform: [5.0, 15.0]}",
            "use integer, or a choice",
        ),
        ("batch_size: 20", "batch_size: {choice: [5, 7.5]}", "use integer, or a choice"),
        ("[inverted, rotated,", "[inverted, inverted,", "a shift is listed twice"),
        ("accept: ge", "accept: maybe", "greedy: accept = 'maybe'. Allowed: ge, gt."),
        ("accept: ge", "acept: ge", "has no option 'acept'. Its options: accept, order, seed."),
    ],
)
def test_a_mistake_is_named_with_file_field_value_and_what_is_allowed(old, new, said):
    with pytest.raises(ConfigError) as error:
        edited(old, new)
    assert str(error.value).startswith("x.yaml: ")
    assert said in str(error.value)


HEAD = {"sampler: random": "train: head"}
STILL = {
    "rotation: {uniform: [0, 15], off: 0.3}": "rotation: 0",
    "shift: {uniform: [0, 0.1], off: 0.3}": "shift: 0",
}


def training(options: str) -> dict[str, str]:
    return {"\nresources": f"\ntraining: {{{options}}}\nresources"}


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (
            {"sampler: random": "scheduler: asha"} | training("workers: 2"),
            "training: workers = 2 train a trial to its end: asha "
            "cannot stop it; write scheduler: fifo, or workers: 1.",
        ),
        (
            {"sampler: random": "sampler: tpe\n  scheduler: asha"} | training("workers: 2"),
            "asha cannot stop it",
        ),
        (
            HEAD | STILL | training("workers: 3"),
            "workers = 3 would each compute the features of all samples",
        ),
        (
            HEAD | STILL | training("checkpointing: true"),
            "checkpointing = true is about the body, but train: head; leave it out.",
        ),
        (
            HEAD | STILL | {"batch_size: 20": "batch_size: 20\n    last_blocks: 1"},
            "search: last_blocks is about the body, which train: head leaves alone; leave it out.",
        ),
        (
            HEAD | STILL | {"batch_size: 20": "layer_decay: {uniform: [0.5, 0.9]}"},
            "layer_decay is about the body",
        ),
        (
            {"gpu: 0": "gpu: 2"},
            "resources.gpu: 2 is not allowed: a worker computes on one GPU; for more: training: "
            "{workers: N}.",
        ),
        (
            {"gpu: 0": "gpu: 0.5"} | training("workers: 2"),
            "resources: gpu = 0.5 with training.workers = 2: NCCL",
        ),
    ],
    ids=["asha", "tpe-asha", "head", "activations", "blocks", "layers", "gpus", "shared-gpu"],
)
def test_options_that_cannot_work_together_are_refused_by_name(edits, said):
    text = TEXT
    for old, new in edits.items():
        assert old in text, old
        text = text.replace(old, new)
    with pytest.raises(ConfigError) as error:
        parse(text, "x.yaml")
    assert said in str(error.value)


def test_a_refused_spec_ends_with_status_2(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.replace("gpu: 0", "gpu: 2"))
    done = inside("sweep", path, "--dry-run", check=False)
    assert done.returncode == 2
    assert "resources.gpu: 2 is not allowed" in done.stderr


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        load(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml: not YAML"):
        parse("a: [1", "x.yaml")
    with pytest.raises(ConfigError, match="a spec is a mapping, not list"):
        parse("- 1", "x.yaml")


def test_yaml_reads_off_as_a_word_and_5e_5_as_a_number():
    spec = edited("tracking: embedded", "tracking: off")
    assert spec.tracking == "off"
    assert isinstance(spec.search.space.lr, Dimension)
    assert spec.search.space.lr.log_uniform == (5e-5, 2e-3)


@pytest.mark.parametrize(
    ("dimension", "u", "value"),
    [
        (Dimension(log_uniform=(1e-4, 1e-2)), 0.5, 1e-3),
        (Dimension(uniform=(10.0, 30.0)), 0.25, 15.0),
        (Dimension(integer=(5, 15)), 0.0, 5),
        (Dimension(integer=(5, 15)), 0.999999, 15),
        (Dimension(choice=("a", "b", "c")), 0.34, "b"),
        (Dimension(uniform=(10.0, 30.0), off=0.5), 0.49, 0),
        (Dimension(uniform=(10.0, 30.0), off=0.5), 0.5, 10.0),
        (Dimension(uniform=(10.0, 30.0), off=0.5), 0.75, 20.0),
    ],
)
def test_a_coordinate_maps_to_the_value_worked_out_by_hand(dimension, u, value):
    assert dimension.at(u) == pytest.approx(value)


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_a_longer_plan_starts_with_the_shorter_one(sampler):
    base = edited("sampler: random", f"sampler: {sampler}")
    longer = parse(
        TEXT.replace("sampler: random", f"sampler: {sampler}").replace("trials: 16", "trials: 24"),
        "x.yaml",
    )
    assert plan(longer)[:16] == plan(base)
    assert plan(base) == plan(base)


def test_another_seed_plans_other_trials():
    first, second = plan(load(DIGITS)), plan(edited("seed: 0\n", "seed: 1\n"))
    assert not {t.hparams["lr"] for t in first} & {t.hparams["lr"] for t in second}


def test_the_first_trial_of_the_demo_never_changes():
    # A change here makes every stored trial of every user unfindable. Raise CODE_VERSION instead.
    first = plan(load(DIGITS))[0]
    assert first.seed == 2056903543
    assert first.hparams["lr"] == pytest.approx(0.0011557404085078954, rel=1e-12)
    assert first.hparams["epochs"] == 5


THETA_0 = CheckpointRef(sha256="0" * 64, size_bytes=1)
SPLITS = tuple(
    Split(name=name, role=name, digest=f"digest of {name}", size=1, classes=2)
    for name in ("train", "held_out")
)
BASIS = Basis(key="k", splits=SPLITS, init=THETA_0, anchor=THETA_0)


def test_trials_of_three_workers_are_other_trials_than_before_ddp_and_those_of_two_are_not():
    def code(workers: int) -> str:
        spec = edited("\nresources", f"\ntraining: {{workers: {workers}}}\nresources")
        return trials_of(spec, BASIS)[0].code

    assert [code(workers) for workers in (1, 2, 3, 8)] == ["2", "2", "2+ddp", "2+ddp"]


def test_trials_of_another_metric_are_other_trials_and_those_of_accuracy_what_they_were():
    said, written, macro = (
        trials_of(edited("seed: 0\n", f"seed: 0\n{metric}"), BASIS)[0]
        for metric in ("", "metric: accuracy\n", "metric: macro_f1\n")
    )
    assert said == written
    assert said.key == "ab7ce321e508493b"
    assert b"metric" not in encode(said)
    assert macro.key != said.key
    stored = decode(encode(msgspec.structs.replace(macro, data=())), Trial)
    assert stored.metric == "macro_f1"
    assert edited("seed: 0\n", "seed: 0\nmetric: nll\n").digest != load(DIGITS).digest


def test_qmc_points_fill_the_range_more_evenly_than_random_ones():
    def gaps(sampler: str) -> float:
        spec = edited("sampler: random", f"sampler: {sampler}")
        lrs = sorted(math.log(float(t.hparams["lr"])) for t in plan(spec))
        return max(b - a for a, b in itertools.pairwise(lrs))

    assert gaps("qmc") < gaps("random")


def test_the_digest_ignores_what_does_not_shape_the_trials():
    digest = load(DIGITS).digest
    assert edited("accept: ge", "accept: gt").digest == digest
    assert edited("storage: embedded", "storage: s3://x/y").digest == digest
    assert edited("trials: 16", "trials: 17").digest != digest


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("tracking", "http://me:hunter2@mlflow:5000"),
        ("tracking", "https://:hunter2@mlflow"),
        ("tracking", "http://me:hunter2/x@mlflow"),
        ("storage", "s3://key:hunter2@bucket/prefix"),
    ],
    ids=["user and password", "password alone", "password with a slash", "key pair"],
)
def test_a_password_in_a_spec_is_refused_and_not_repeated(field, url):
    with pytest.raises(ConfigError, match=rf"{field}: .*no password may be in it") as error:
        edited(f"{field}: embedded", f"{field}: {url}")
    assert "hunter2" not in str(error.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(error.value)


@pytest.mark.parametrize("url", ["http://me@mlflow:5000", "http://mlflow:5000/a@b"])
def test_a_user_without_a_password_and_a_path_with_an_at_may_be_in_a_spec(url):
    assert edited("tracking: embedded", f"tracking: {url}").tracking == url


WRONG = """
name: Mine!
sed: 1
task:
  kind: timm
  model: resnet18
  args: {num_classes: 3}
  classes: [a, b]
  size: 32
data:
  kind: folder
  trian: /tmp/x
  held_out: 10
search:
  trials: many
  space:
    lr: [1e-5, 1e-3]
    epochs: 2
storage: embeded
"""


def test_all_mistakes_are_named_at_once_each_with_its_line_and_column():
    with pytest.raises(ConfigError) as error:
        parse(WRONG, "x.yaml")
    first, *lines = str(error.value).split("\n")
    assert first == f"x.yaml: {len(lines)} mistakes:"
    said = dict(line.partition(": ")[::2] for line in lines if line.startswith("line"))
    assert said["line 2, column 1"].startswith("name: 'Mine!' is not allowed")
    assert said["line 3, column 1"].startswith("sed: unknown key. Did you mean 'seed'?")
    assert said["line 7, column 3"].startswith("task.args: ")
    assert said["line 15, column 3"].startswith("search.trials: 'many' is not allowed")
    assert said["line 17, column 5"] == (
        "search.space.lr: [1e-05, 0.001] is not allowed: Input should be a valid number. Write "
        "lr: {log_uniform: [1e-05, 0.001]}, or uniform, integer, choice."
    )
    assert said["line 19, column 1"].startswith(
        "storage: 'embeded' is not allowed: write embedded, s3://"
    )
    assert "line 12, column 3: data.trian: unknown key. Did you mean 'train'?" in str(error.value)
    needed = "line 10, column 1: data.train: required, but not given."  # where `data` is
    assert f"{needed} For example: train: pets/." in lines
    assert "Allowed: name, seed" in said["line 3, column 1"]
    assert said["line 3, column 1"].endswith(" For example: seed: 0.")


def test_a_key_in_the_wrong_place_and_a_recipe_have_their_place_too():
    with pytest.raises(ConfigError) as error:
        parse(TEXT.replace("seed: 0\n", "seed: 0\nlr: 1e-3\n"), "x.yaml")
    assert "lr: unknown key. It belongs into search.space. Allowed: name" in str(error.value)
    with pytest.raises(ConfigError) as error:
        parse(TEXT.replace("  greedy:", "  greedi:"), "x.yaml")
    line = next(k for k, one in enumerate(TEXT.splitlines(), 1) if "  greedy:" in one)
    assert str(error.value).startswith(f"x.yaml: line {line}, column 3: recipes: unknown recipe")
    assert str(error.value).endswith("Did you mean 'greedy'?")


@pytest.mark.parametrize("place", EXAMPLES)
def test_an_example_is_no_mistake_where_it_belongs(place):
    data = parse_yaml(TEXT, "x")
    *above, last = place.split(".")
    inner = data
    for key in above:
        if key not in inner:  # left out of this spec: as its own example has it
            around = parse_yaml(EXAMPLES[key], "x")
            inner[key] = around if isinstance(around, dict) else {}
        inner = inner[key]
    inner[last] = parse_yaml(EXAMPLES[place], "x")
    if place == "budget.gpu_hours":  # refused where there are none
        data["resources"]["gpu"] = 1
    try:
        parse(json.dumps(data), "x")  # JSON is YAML
    except ConfigError as error:  # the task and the data of this spec may be of another kind
        said = str(error)
        assert place.partition(".")[0] in ("task", "data")
        assert f"{place}: unknown key" in said or f"{place}: " not in said, said


def test_what_most_people_write_need_not_be_written():
    wanted = load(DIGITS)
    lines = TEXT.split("\n")
    bare = [line for line in lines if not line.startswith(("storage:", "tracking:"))]
    text = "\n".join(bare).split("recipes:")[0]
    found = parse(text, "x.yaml")
    assert (found.storage, found.tracking) == ("embedded", "embedded")
    assert list(found.recipes) == ["uniform", "greedy", "wise_ft", "greedy_ensemble"]
    assert found.digest == wanted.digest
