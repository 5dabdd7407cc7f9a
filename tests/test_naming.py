"""Class names and templates: named sets, files, and messages for what is neither."""

import open_clip
import pytest

from soupray.core.errors import ConfigError
from soupray.spec.class_names import resolved


def task(**given: object) -> dict:
    return resolved({"task": {"kind": "open_clip", **given}}, "x.yaml")["task"]


def test_imagenets_names_and_templates_are_open_clips():
    found = task(classes="imagenet", templates="imagenet")
    assert found["classes"] == list(open_clip.IMAGENET_CLASSNAMES)
    assert (len(found["classes"]), found["classes"][1]) == (1000, "goldfish")
    assert len(found["templates"]) == 80
    filled = [template.format("tench") for template in found["templates"]]
    assert filled == [sentence("tench") for sentence in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(task(templates="imagenet_simple")["templates"]) == 7


def test_a_list_is_left_as_it_is_and_a_file_is_read(tmp_path):
    assert task(classes=["a", "b"], templates=["{}"])["classes"] == ["a", "b"]
    (tmp_path / "names.yaml").write_text("- yes\n- off\n- ice cream\n")
    assert task(classes=str(tmp_path / "names.yaml"))["classes"] == ["yes", "off", "ice cream"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"classes": "imagnet"},
            "x.yaml: task.classes: 'imagnet' is neither a known set (im",
        ),
        ({"templates": "cifar"}, "task.templates: 'cifar' is neither a known set (imagenet,"),
        ({"classes": "{file}"}, "names.yaml holds no list. Write one entry a line"),
    ],
)
def test_what_is_neither_is_named(tmp_path, given, said):
    (tmp_path / "names.yaml").write_text("a: b")
    given = {k: v.replace("{file}", str(tmp_path / "names.yaml")) for k, v in given.items()}
    with pytest.raises(ConfigError) as error:
        task(**given)
    assert said in str(error.value)


def test_what_is_malformed_is_left_for_the_specs_own_checks():
    for data in ({}, {"task": 3}, {"task": {}}, {"task": {}, "data": {"kind": "folder"}}):
        assert resolved(data, "x.yaml") == data
