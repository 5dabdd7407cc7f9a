"""Task, data and init of a spec: what may be combined, and one message for every mistake."""

import pytest
from idx_files import FASHION
from shared import split

from soupray.core.errors import ConfigError
from soupray.core.records import Basis, CheckpointRef
from soupray.search.plan import plan, trials_of
from soupray.spec.data import HeldOutParts
from soupray.spec.space import Space
from soupray.spec.sweep_spec import SweepSpec, load, parse
from soupray.spec.task import Trained

TEXTS = {"fashion": FASHION.read_text(), "digits": (FASHION.parent / "digits.yaml").read_text()}
INIT = (
    "init:                       # theta_0 of every trial: one short training, on the train split"
)
TRAINED = "  trained: {lr: 3e-3, epochs: 4, batch_size: 64}"


def edited(which: str, *edits: tuple[str, str]) -> SweepSpec:
    text = TEXTS[which]
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return parse(text, "x.yaml")


@pytest.mark.parametrize(
    ("which", "old", "new", "said"),
    [
        ("digits", "kind: digits", "kind: digit", "'digit' found using 'kind' does not match"),
        (
            "digits",
            "kind: digits",
            "kind: idx",
            "data.train_per_class: unknown key. It is a key of another kind of data. Allowed: ",
        ),
        (
            "digits",
            "kind: open_clip",
            "kind: timm",
            "task.templates: unknown key. It is a key of another kind of task. Allowed: kind",
        ),
        ("digits", "train_per_class", "train_per_clas", "Did you mean 'train_per_class'?"),
        ("fashion", "kind: idx ", "knd: idx ", "data: Unable to"),
        ("fashion", "  train: 10000 ", "  trains: 10000 ", "data.trains: unknown key. Did you"),
        ("fashion", "folders: ", "folder: ", "data.folder: unknown key. Did you mean 'folders'?"),
        ("fashion", "[blurred,", "[blured,", "'blured' is not allowed: Input should be 'inverted'"),
        ("fashion", "held_out: 2600 ", "held_out: many ", "data.held_out: 'many' is not allowed"),
        (
            "fashion",
            "held_out: 2600 ",
            "held_out: {select: 1} ",
            "data.held_out.rank: required, but not given.",
        ),
        (
            "fashion",
            "held_out: 2600 ",
            "held_out: {select: 9, rank: 0} ",
            "data.held_out.rank: 0 is not allowed",
        ),
        (
            "fashion",
            "held_out: 2600 ",
            "held_out: {select: 9, ranks: 9} ",
            "data.held_out.ranks: unknown key. Did you mean 'rank'? Allowed: select, rank, ids.",
        ),
        ("fashion", "in_chans: 1", "in_chans: 3", "task.std: [0.353] is not allowed: the model "),
        (
            "fashion",
            "mean: [0.286]",
            "mean: [0.286, 1]",
            "reads 1 channels (args.in_chans, else 3)",
        ),
        (
            "fashion",
            "anchor: init",
            "anchor: zero_shot",
            "anchor: 'zero_shot' is not allowed: a timm model has no zero-shot head; write anchor: "
            "init.",
        ),
        ("fashion", "anchor: init", "# anchor", "a timm model has no zero-shot head; write anchor"),
        ("fashion", "anchor: init", "anchor: first", "should be 'zero_shot' or 'init'"),
        (
            "fashion",
            f"{INIT}\n{TRAINED}",
            "init: zero_shot",
            "init: 'zero_shot' is not allowed: a timm model has no zero-shot head; write init: "
            "{probe: {l2: ...}}, or init: {trained: {lr: ..., epochs: ...}}.",
        ),
        ("fashion", f"{INIT}\n{TRAINED}", "", "init: 'zero_shot' is not allowed: a timm model"),
        (
            "fashion",
            f"{INIT}\n{TRAINED}",
            "init: trained",
            "init: 'trained' is not allowed: write zero_shot, {trained: {lr: ..., epochs: ...}}, "
            "{probe: {l2: ...}} or {file: PATH}.",
        ),
        ("fashion", "epochs: 4, batch", "epoch: 3, batch", "init.trained.epoch: unknown key. Did"),
        ("fashion", "epochs: 4, batch", "batch", "init.trained.epochs: required, but not given."),
        ("fashion", "{lr: 3e-3,", "{lr: -1,", "init.trained.lr: -1 is not allowed"),
        ("fashion", "{lr: 3e-3,", "{lr: 30,", "lr = 30.0; allowed is 1e-12 to 10"),
        (
            "fashion",
            "{lr: 3e-3,",
            "{lr: {log_uniform: [1e-3, 1e-2]},",
            "lr is a range; this is one training, so write a number",
        ),
    ],
)
def test_a_mistake_is_named_with_field_value_and_what_is_allowed(which, old, new, said):
    with pytest.raises(ConfigError) as error:
        edited(which, (old, new))
    assert str(error.value).startswith("x.yaml: ")
    assert said in str(error.value)


def test_a_training_has_the_defaults_of_the_search_space():
    space = Space(lr=0.1, epochs=2)
    assert Trained(lr=0.1, epochs=2).numbers() == space.model_dump()
    spec = load(FASHION)
    assert set(spec.init.trained.numbers()) == set(plan(spec)[0].hparams)


def test_a_spec_survives_its_own_json():
    held_out = ("held_out: 2600 ", "held_out: {select: 1600, rank: 1000} ")
    spec = edited("fashion", held_out)
    assert spec.data.held_out == HeldOutParts(select=1600, rank=1000)
    again = SweepSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.digest == spec.digest != load(FASHION).digest


@pytest.mark.parametrize("anchor", ["zero_shot", "init"])
def test_open_clip_may_be_trained_first_and_keep_either_anchor(anchor):
    spec = edited(
        "digits",
        ("init: zero_shot ", "init: {trained: {lr: 0.001, epochs: 1}} "),
        ("anchor: zero_shot ", f"anchor: {anchor} "),
    )
    assert (spec.init_name, spec.anchor) == ("trained", anchor)


def test_how_samples_become_inputs_is_in_every_key():
    """The same weights on inputs that are normalised otherwise are another model."""
    spec = load(FASHION)
    task = spec.task.model_copy(update={"mean": (0.5,)})
    other = spec.model_copy(update={"task": task})
    assert other.setting != spec.setting
    basis = Basis(
        key="b",
        splits=tuple(split(name, 10, name) for name in ("train", "held_out")),
        init=CheckpointRef(sha256="0", size_bytes=1),
        anchor=CheckpointRef(sha256="0", size_bytes=1),
    )
    keys = [{t.key for t in trials_of(s, basis)} for s in (spec, other)]
    assert not keys[0] & keys[1]
