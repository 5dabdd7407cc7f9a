"""What libraries know by name is the same whether they are asked, or remembered."""

import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from soupray.spec import libraries
from soupray.spec.libraries import Memory, imagenet
from soupray.spec.sweep_spec import load

SPEC = """
name: remembered
task: {{{task}}}
data: {{kind: folder, train: /data/train, test: 3, held_out: 5}}
init: {init}
anchor: init
search: {{trials: 1, space: {{lr: 1e-3, epochs: 1}}}}
storage: embedded
tracking: "off"
recipes: {{}}
"""
TASKS = {
    "timm": ("model: resnet50, pretrained: a1_in1k, classes: [a, b]", "{probe: {l2: 1e-3}}"),
    "clip": (
        "model: ViT-B-32-quickgelu, pretrained: openai, classes: imagenet, templates: imagenet",
        "zero_shot",
    ),
}
KINDS = {"timm": "timm", "clip": "open_clip"}


def written(folder: Path, name: str) -> Path:
    task, init = TASKS[name]
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(task=f"kind: {KINDS[name]}, {task}", init=init))
    return path


def test_a_spec_is_read_again_without_torch_and_has_the_same_digest(tmp_path):
    paths = [written(tmp_path, name) for name in TASKS]
    asked = [load(path).digest for path in paths]
    assert [load(path, tmp_path / "memory").digest for path in paths] == asked
    code = (
        "import sys; from pathlib import Path; from soupray.spec.sweep_spec import load\n"
        "for path in sys.argv[2:]: print(load(Path(path), Path(sys.argv[1])).digest)\n"
        "assert not {'torch', 'timm', 'open_clip'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "memory", *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == asked


@pytest.mark.parametrize("damage", ["other", "cut", "empty", "list"])
def test_a_damaged_memory_is_asked_again(tmp_path, damage):
    path, memory = written(tmp_path, "timm"), tmp_path / "memory"
    whole = load(path, memory)
    (file,) = memory.iterdir()
    text = file.read_text()
    assert "0.485" in text  # the mean of ImageNet
    assert whole.task.mean == (0.485, 0.456, 0.406)
    changed = {"other": text.replace("0.485", "0.475"), "cut": text[:-9], "empty": "", "list": "[]"}
    file.write_text(changed[damage])
    assert load(path, memory) == whole
    assert file.read_text() == text


def test_an_answer_is_that_of_the_installed_version(tmp_path, monkeypatch):
    memory, answers = Memory(tmp_path), iter(["first", "second", "third"])

    def ask() -> str:
        return next(answers)

    assert [memory.answer("timm", "a", ask) for _ in range(2)] == ["first", "first"]
    assert memory.answer("timm", "b", ask) == "second"
    monkeypatch.setattr(libraries, "version", lambda distribution: "99.0")
    assert [memory.answer("timm", "a", ask) for _ in range(2)] == ["third", "third"]


def test_a_home_that_cannot_be_written_to_is_asked_each_time(tmp_path):
    (tmp_path / "file").write_text("")
    memory, answers = Memory(tmp_path / "file" / "below"), iter(["first", "second"])
    assert [memory.answer("timm", "a", lambda: next(answers)) for _ in range(2)] == [
        "first",
        "second",
    ]


def test_the_lists_are_those_of_open_clip():
    assert imagenet().IMAGENET_CLASSNAMES == open_clip.IMAGENET_CLASSNAMES
    for name in ("OPENAI_IMAGENET_TEMPLATES", "SIMPLE_IMAGENET_TEMPLATES"):
        mine, theirs = getattr(imagenet(), name), getattr(open_clip, name)
        assert [t("x") for t in mine] == [t("x") for t in theirs]
