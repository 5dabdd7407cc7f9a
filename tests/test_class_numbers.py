"""Whose class is a name: by name, and by number only where the names are numbers."""

import pytest
from open_clip import IMAGENET_CLASSNAMES
from pictures import spec_of, write_folders
from shared import demo
from timm.data import ImageNetInfo

from soupray.core.errors import ConfigError
from soupray.data.cache import open_data, planned
from soupray.spec.class_numbers import class_numbers


def numbers(named, classes, **more):
    return class_numbers(named, classes, "here", "Do this.", **more)


def test_names_decide_whatever_their_order_case_and_spaces():
    assert numbers(["Hot_Dog", "a", "DOG"], ["dog", "hot dog", "A"]) == [1, 2, 0]
    # An exact name first: "a" and "A" are two classes here.
    assert numbers(["a", "A"], ["A", "a"]) == [1, 0]
    # macOS writes letters and accents apart; Straße in capitals.
    assert numbers(["cafe\u0301", "STRASSE"], ["Straße", "café"]) == [1, 0]


def test_names_that_are_numbers_are_the_numbers_of_the_classes():
    named = sorted(map(str, range(12)))  # as folders are listed: 0, 1, 10, 11, 2, ...
    assert numbers(named, [f"c{k}" for k in range(12)]) == [int(n) for n in named]
    assert numbers(["00", "01"], ["x", "y"]) == [0, 1]
    assert numbers(["1"], ["x", "y"], complete=False) == [1]
    # Classes that are themselves called by numbers are meant by name.
    assert numbers(["1", "2"], ["2", "1"]) == [1, 0]
    for named in (["1", "2"], ["0", "00"]):
        with pytest.raises(ConfigError, match="2 of its 2 classes are not in"):
            numbers(named, ["x", "y"])


def test_lists_that_differ_are_shown_side_by_side():
    with pytest.raises(ConfigError) as caught:
        numbers(["cat", "hound"], ["dog", "cat", "a bee"])
    assert str(caught.value) == (
        "here: 1 of its 2 classes are not in task.classes; it lacks 2 of the task's 3 classes.\n"
        "  in task.classes                 in the data\n"
        "  'dog'                           'hound'\n"
        "  'a bee'\n"
        "Do this."
    )
    with pytest.raises(ConfigError, match=r"^here: 'Cat' and 'CAT' both mean 'cat'\. Do this\.$"):
        numbers(["Cat", "CAT", "dog"], ["dog", "cat"])


def test_imagenet_is_known_by_synset_and_by_lemma():
    info = ImageNetInfo("imagenet-1k")
    synsets, order = info.label_names(), [5, 0, *range(6, 1000), 1, 2, 3, 4]
    assert numbers([synsets[k] for k in order], IMAGENET_CLASSNAMES) == order
    lemma = info.index_to_description(0)
    assert numbers([lemma], IMAGENET_CLASSNAMES, complete=False) == [0]
    # The bird and the machine have one lemma; "missile" is the name of two classes.
    for name in ("crane", "missile"):
        with pytest.raises(ConfigError, match=f"1 of its 1 classes .*\n.*\n.* '{name}'"):
            numbers([name], IMAGENET_CLASSNAMES, complete=False)
    with pytest.raises(ConfigError, match="1 of its 1 classes"):  # synsets of a task of two
        numbers([synsets[0]], IMAGENET_CLASSNAMES[:2], complete=False)


@pytest.mark.parametrize("classes", ["[cat, ant, bee]", "[Bee, CAT, Ant]"])
def test_folders_are_labelled_by_name(tmp_path, classes):
    write_folders(tmp_path / "train", {"ant": 3, "bee": 3, "cat": 3})
    write_folders(tmp_path / "val", {"cat": 2, "bee": 1}, seed=50)
    lines = f"kind: folder\ntrain: {tmp_path}/train\ntest: {tmp_path}/val\nheld_out: 3\nsize: 16"
    spec = spec_of(lines, f"classes: {classes}")
    data = open_data(spec, tmp_path / "cache")
    for split in data.splits:
        named = [spec.task.classes[k].lower() for k in data.samples(split)[1]]
        assert named == [i.split("/")[0] for i in data.ids(split)]
    shown = {c.name.lower(): (c.source, c.train, c.held_out, c.test) for c in planned(spec).classes}
    assert shown == {"ant": ("ant", 2, 1, 0), "bee": ("bee", 2, 1, 1), "cat": ("cat", 2, 1, 2)}


def test_a_label_map_is_matched_by_name_too(tmp_path):
    write_folders(tmp_path / "train", {"n1": 2, "n2": 3, "n3": 2, "n9": 1})
    (tmp_path / "map.yaml").write_text("dog: [n3, n1]\ncat: n2\n")
    lines = f"""
        kind: folder
        train: {tmp_path}/train
        test: 2
        label_map: {tmp_path}/map.yaml
        held_out: 2
        size: 16"""
    spec = spec_of(lines, "classes: [cat, dog]")
    assert [(c.name, c.source) for c in planned(spec).classes] == [("cat", "n2"), ("dog", "n1, n3")]
    with pytest.raises(
        ConfigError, match=r"label_map.*it lacks 1 of the task's 3 classes[^W]*'eel'"
    ):
        planned(spec_of(lines, "classes: [cat, dog, eel]"))


def test_the_digits_are_known_by_their_words_and_figures(tmp_path):
    plain = open_data(demo(), tmp_path)
    split = plain.split("test")
    wanted = plain.samples(split)[1]
    words = "[zero, one, two, three, four, five, six, seven, eight, nine]"
    for turned in ("[nine, eight, seven, six, five, four, three, two, one, zero]",
                   "['9', '8', '7', '6', '5', '4', '3', '2', '1', '0']"):  # fmt: skip
        data = open_data(demo((words, turned)), tmp_path)
        assert data.ids(data.split("test")) == plain.ids(split)
        assert (data.samples(data.split("test"))[1] == 9 - wanted).all()


def test_a_class_has_one_name_of_its_own():
    for classes, said in (
        ("[cat, dog, cat]", "the class 'cat' is listed twice"),
        ("[cat, ' ']", "class 1 has no name"),
    ):
        with pytest.raises(ConfigError, match=said):
            spec_of("kind: digits", f"classes: {classes}")
    # OpenAI's own names have two pairs of equal ones, and stay as they are.
    assert len(spec_of("kind: digits", "classes: imagenet").task.classes) == 1000
