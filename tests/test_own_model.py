"""Models and data that are functions of the user: the page of the guide, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HANG_S, ROOT, leaderboard
from idx_files import tiny
from own_code import files_of, installed_wheels, standing_in
from safetensors.torch import load_file
from tiny_text import tiny_text, write_world

from soupray.core import plugins
from soupray.core.errors import ConfigError, IncompatibleWeights
from soupray.data.cache import open_data, planned
from soupray.spec.sweep_spec import SweepSpec, load
from soupray.spec.task import TorchSpec
from soupray.store.weights_file import write_weights
from soupray.tasks import recorded_task, task_of
from soupray.testing import check_dataset, check_task

FILES = files_of("index", "task", "data")


@pytest.fixture
def here(tmp_path, monkeypatch):
    with standing_in(tmp_path / "mine", FILES, monkeypatch) as folder:
        yield folder


def edited(folder: Path, *edits: tuple[str, str]) -> SweepSpec:
    text = (folder / "letters.yaml").read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "edited.yaml").write_text(text)
    return load(folder / "edited.yaml")


def code(folder: Path, text: str) -> None:
    """Write a module `own`, with what the tests need imported."""
    (folder / "own.py").write_text(
        f"import numpy as np\nimport torch\nfrom PIL import Image\nfrom torch import nn\n{text}\n"
    )
    plugins.load.cache_clear()
    sys.modules.pop("own", None)


def test_our_own_tasks_keep_the_contract(here, tmp_path):
    images = torch.randint(0, 256, (6, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    for spec in (load(ROOT / "sweeps" / "digits.yaml"), tiny("/nowhere")):
        check_task(task_of(spec.task), images.byte())
    write_world(tmp_path)
    spec = tiny_text(tmp_path)
    texts, _ = open_data(spec, tmp_path / "cache").samples(
        open_data(spec, tmp_path / "cache").split("train")
    )
    check_task(task_of(spec.task), torch.from_numpy(np.array(texts[:6])))


@pytest.mark.slow
def test_workers_of_ray_find_what_wheels_bring(tmp_path):
    """By the names of entry points alone; `test_plugin_pages` has the numbers, without Ray."""
    site, away = installed_wheels(tmp_path / "packages"), tmp_path / "away"
    away.mkdir()
    text = FILES["letters.yaml"].replace("convnet:make_model", "convnet")
    text = text.replace("letters:make_dataset", "letters").replace("vrf: {}", "trimmed: {share: 1}")
    text = text.replace("trials: 3", "trials: 2").replace("small]", "small, jpeg]")
    own = "metric: brier\nloss: gce\naugmentation: erase\n"
    (away / "letters.yaml").write_text(f"{text}{own}")

    def run(*arguments: object, path: Path | None = site) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "soupray", *map(str, arguments), "--home", "home"],
            cwd=away, env={**os.environ, "PYTHONPATH": f"{ROOT}:{path or ''}"},
            capture_output=True, text=True, timeout=HANG_S,
        )  # fmt: skip
        assert done.returncode == (0 if path else 2), done.stdout + done.stderr
        return done.stdout if path else done.stderr

    try:
        found = json.loads(run("sweep", "letters.yaml", "--dry-run", "--json"))
        assert [c["test"] for c in found["classes"]] == [40] * 4
        run("sweep", "letters.yaml")
        shown = run("soup", "letters.yaml", "--output", "out")
        assert "brier" in shown
        entries = {e["name"]: e for e in leaderboard(away / "out")}
        assert {"best_single", "uniform", "greedy", "trimmed"} <= set(entries)
        assert set(entries["trimmed"]["shifts"]) == {"rotated", "small", "jpeg"}
        assert len(entries["trimmed"]["ingredients"]) == 2
        # Without the wheels it is named; nothing is lost.
        refused = run("soup", "letters.yaml", path=None)
        assert "task.model = 'convnet' is neither module:name nor the name of an entry" in refused
    finally:
        subprocess.run(
            [sys.executable, "-m", "soupray", "down", "--home", "home"], cwd=away, check=False
        )


@pytest.mark.slow
def test_the_example_of_an_exported_folder_runs(here):
    """Code that is shown with the weights, in a process without soupray."""
    spec = load(here / "letters.yaml").task
    task = task_of(spec)
    weights = task.init()
    folder = here / "exported"
    folder.mkdir()
    task.export(weights, folder)
    import letters

    image, _ = letters.make_dataset("test")[3]
    image.save(folder / "photo.png")
    (folder / "convnet.py").write_text(FILES["convnet.py"])
    said = subprocess.run(
        [sys.executable, "-c", task.example()], cwd=folder,
        capture_output=True, text=True, timeout=HANG_S,
    )  # fmt: skip
    model = task.model().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(task.inputs(torch.from_numpy(np.array(image))[None, None]))
    assert said.stdout.strip() == letters.NAMES[int(logits.argmax())], said.stderr


def test_edited_code_makes_other_trials_and_the_file_of_the_data_is_seen(here):
    first = load(here / "letters.yaml")
    assert isinstance(first.task, TorchSpec)
    assert first.task.code == plugins.load("soupray.tasks", "convnet:make_model").digest
    for name in ("convnet.py", "letters.py"):
        (here / name).write_text(FILES[name] + "\n# edited\n")
    second = load(here / "letters.yaml")
    assert second.digest != first.digest
    assert second.setting.inputs != first.setting.inputs
    assert first.task.code != second.task.code
    plugins.load.cache_clear()
    task = first.task.model_dump(mode="json") | {"code": first.task.code}
    with pytest.raises(ConfigError, match=r"task.code is '.*', but the code of 'convnet:make_mod"):
        SweepSpec(**first.model_dump(mode="json", exclude={"task"}), task=task)
    # What lies at a path in args shapes the data.
    count = here / "count.txt"
    count.write_text("3")
    code(here, """
def data(split, file):
    shade = 50 * (split == "test")
    count = 2 * int(open(file).read())
    return [(np.full((8, 8), 9 * k + shade, np.uint8), "AB"[k % 2]) for k in range(count)]
""")  # fmt: skip
    spec = edited(
        here,
        ("letters:make_dataset", "own:data\n  args: {file: count.txt}"),
        ("held_out: 40", "held_out: 2"),
        ("[A, B, C, D]", "[B, A]"),
        ("shifts: [rotated, small]", "shifts: []"),
    )
    assert open_data(spec, here / "cache").split("test").size == 6
    assert (
        open_data(spec, here / "cache")
        .samples(open_data(spec, here / "cache").split("test"))[1]
        .tolist()
        == [1, 0] * 3
    )  # class names, not the order of the data
    count.write_text("4")
    assert open_data(spec, here / "cache").split("test").size == 8


def test_a_worker_with_other_code_refuses_the_sweep(here):
    """A key that says one code must not be that of another's results."""
    from soupray.training.worker import worker_context

    spec = load(here / "letters.yaml")
    (here / "convnet.py").write_text(FILES["convnet.py"] + "\n# edited\n")
    plugins.load.cache_clear()
    with pytest.raises(ConfigError, match=r"that of the sweep had .* same code on all machines"):
        worker_context.__wrapped__(spec, None)


def test_a_folder_that_is_on_the_path_twice_has_one_digest(here, monkeypatch):
    """Ray's workers have the driver's folders on their path, beside their own."""
    (here / "parts").mkdir()  # without __init__.py: its files are looked for in all folders
    (here / "parts" / "nets.py").write_text("def make(): ...\n")
    once = plugins.digest_of("soupray.tasks", "parts.nets:make")
    (here.parent / "link").symlink_to(here)
    monkeypatch.syspath_prepend(here.parent / "link")
    assert plugins.digest_of("soupray.tasks", "parts.nets:make") == once
    (here / "parts" / "more.py").write_text("# of the same package\n")
    assert plugins.digest_of("soupray.tasks", "parts.nets:make") != once


def test_every_form_of_an_image_is_the_same_image(here):
    code(here, """
COLOURS = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(5, 4, 3) * 4
FORMS = {
    "pillow": Image.fromarray(COLOURS),
    "array": COLOURS,
    "tensor": torch.from_numpy(COLOURS).permute(2, 0, 1),
    "floats": torch.from_numpy(COLOURS).permute(2, 0, 1).float() / 255,
    "half": (torch.from_numpy(COLOURS).permute(2, 0, 1).float() / 255).numpy(),
    "palette": Image.fromarray(COLOURS).quantize(20),
}
def data(split):
    return [(image, k) for k, image in enumerate(FORMS.values())]
""")  # fmt: skip
    from soupray.data.decoding import Look, decode
    from soupray.data.torch_sets import list_torch
    from soupray.spec.data import TorchDataSpec

    spec = TorchDataSpec(kind="torch", dataset="own:data", held_out=0, size=4)
    import own

    with pytest.raises(AssertionError, match=r"sample 4: it is an array \[3, 5, 4\] float32") as e:
        check_dataset("own:data", splits=["train"])
    assert "Allowed are arrays [H, W] and [H, W, 3], tensors [1, H, W] and [3, H, W]" in str(
        e.value
    )
    del own.FORMS["half"]
    listed, names = list_torch(spec, "train")
    assert names is None
    made = [decode(listed.raw(row), Look(4, 3)) for row in range(len(listed.ids))]
    assert all(np.array_equal(one, made[0]) for one in made)


REFUSED = {
    "def data(split): raise KeyError(split)": r"split 'train': KeyError: 'train' \(.*own.py:5\)",
    "def data(split): return iter([])": "is list_iterator, which has no __getitem__",
    "class D:\n    def __getitem__(self, k): return 1\ndef data(split): return D()":
        "is D, which has no __len__",
    "def data(split): return []": "the dataset is empty",
    "def data(split): return [(np.zeros((4, 4), np.uint8), 1, 'x')]":
        "sample 0 is tuple of 3 parts, not a pair of an image and its target",
    "class D(list):\n    reads = 0\n    def __getitem__(self, k):\n        self.reads += k > 0\n"
    "        return np.zeros((4, 4), np.uint8), 'AB'[self.reads % 2]\n"
    "def data(split): return D(range(9))":
        "the target of sample 1 changes from one read to the next, from 'B' to 'A'",
    "def data(split): return [np.zeros((4, 4), np.uint8)]": "sample 0 is ndarray, not a pair",
    "def data(split): return [({}, 0)]": "sample 0: it is dict, not an image of Pillow",
    "def data(split): return [(np.zeros((4, 4), np.uint8), float('nan'))]":
        "the target of sample 0 is nan. Allowed are the name of a class",
    "def data(split): return [(np.zeros((4, 4), np.uint8), -1)]": "the target of sample 0 is -1",
    "def data(split): return [(np.zeros((4, 4), np.uint8), t) for t in ('A', 1)]":
        "the target of sample 0 is 'A' and that of sample 1 is 1",
    "def data(split): return [(np.zeros((4, 4), np.uint8), 'E')] * 4": "'E'",
    "def data(split): return [(torch.randn(3, 4, 4), 'A')]": "Leave the normalisation out|changes",
    "def data(split): return [(torch.full((3, 4, 4), 2.0), 'A')]": "values outside 0..1",
    "def data(split): return [(torch.full((3, 4, 4), 0.5), 'A')]": "no multiples of 1/255",
    "def data(split): return [(np.zeros((4, 4, 4), np.uint8), 'A')]": r"array \[4, 4, 4\] uint8",
    "def data(split): return [(np.zeros((4, 4), np.int64), 'A')]": "Allowed are uint8, and floats",
    "class D(list):\n    def __getitem__(self, k): return np.random.randint(0, 255, (4, 4)).astype("
    "np.uint8), 'A'\ndef data(split): return D([1])": "sample 0 changes from one read to the next",
    "class D(list):\n    classes = ['A']\ndef data(split): return D([(np.zeros((4, 4), np.uint8), 1"
    ")])": "target of sample 0 is 1, but `classes` of the dataset has 1 names",
    "class D(list):\n    def __len__(self): return 1 // 0\ndef data(split): return D()":
        "its __len__ raised ZeroDivisionError",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_data_that_are_not_understood_are_refused_by_name(here, text):
    code(here, text)
    spec = edited(here, ("letters:make_dataset", "own:data"))
    with pytest.raises(ConfigError, match=REFUSED[text]) as error:
        planned(spec)
    assert "own:data" in str(error.value)


def test_a_sample_that_cannot_be_read_is_named_and_may_be_left_out(here):
    code(here, """
class D(list):
    targets = [0, 1] * 10
    def __getitem__(self, row):
        if row == 7:
            raise OSError("damaged")
        return np.full((4, 4), row, np.uint8), self.targets[row]
def data(split):
    test = [(np.full((4, 4), 200 + k, np.uint8), k % 2) for k in range(4)]
    return D(range(20)) if split == "train" else test
""")  # fmt: skip
    edits = [
        ("letters:make_dataset", "own:data"),
        ("held_out: 40", "held_out: 2"),
        ("[A, B, C, D]", "[A, B]"),
        ("shifts: [rotated, small]", "shifts: []"),
    ]
    with pytest.raises(ConfigError, match=r"7 \(.*own:data.*sample 7: OSError: damaged"):
        open_data(edited(here, *edits), here / "cache")
    spec = edited(here, *edits, ("channels: 1", "channels: 1\n  on_error: skip"))
    data = open_data(spec, here / "cache")
    assert data.split("train").size + data.split("held_out").size == 19
    assert any("7 (" in note and "left out" in note for note in data.notes)


MODELS = {
    "def model(): raise ValueError('no')": r"ValueError: no \(.*own.py:5\)",
    "def model(): return 3": "returned int, not a torch.nn.Module",
    "def model(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 3))":
        r"its outputs are \[2, 3\], not \[2, 4\]",
    "def model(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 4), nn.Softmax(1))":
        "its outputs are not those of a linear layer",
    "def model(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))":
        "the tensor '1.weight' has no shape before the first input",
    "class M(nn.Module):\n"
    "    def __init__(self): super().__init__(); self.a = nn.Linear(1024, 4); "
    "self.w = nn.Parameter(torch.ones(4, dtype=torch.complex64))\n"
    "    def forward(self, x): return self.a(x.flatten(1) * self.w.abs().sum())\n"
    "def model(): return M()": "the tensor 'w' is complex",
    "ONE = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))\ndef model(): return ONE":
        "two calls return one and the same tensor '1.weight'",
    "class M(nn.Linear):\n    def forward(self, x): return 2 * super().forward(x)\n"
    "def model(): return nn.Sequential(nn.Flatten(), M(1024, 4))": "not those of a linear layer",
    "def model(): return nn.Sequential(nn.Flatten(), "
    "nn.utils.parametrizations.weight_norm(nn.Linear(1024, 4)))": "no weight_norm",
    "class M(nn.Module):\n"
    "    def __init__(self): super().__init__(); self.a = nn.Linear(1024, 4)\n"
    "    def forward(self, x): x = self.a(x.flatten(1)); return (x, x) if self.training else x\n"
    "def model(): return M()": "returned in training mode tuple.* Leave auxiliary outputs out",
    "def model(): return nn.Linear(5, 4)": r"for float32 inputs \[2, 1, 32, 32\] it raised Runtime",
    "class M(nn.Module):\n"
    "    def __init__(self): super().__init__(); self.a = nn.Linear(1024, 4)\n"
    "    def forward(self, x): return {'logits': self.a(x.flatten(1))}\n"
    "def model(): return M()": "forward returned dict, not a tensor",
    "class M(nn.Module):\n"
    "    def __init__(self): super().__init__(); self.a = nn.Linear(1024, 1024)\n"
    "    def forward(self, x): return self.a(self.a(x.flatten(1)))[:, :4]\n"
    "def model(): return M()": "are not those of a linear layer",
    "class M(nn.Module):\n"
    "    def __init__(self): super().__init__(); self.b = nn.Linear(1024, 4); "
    "self.a = nn.Linear(4, 4)\n"
    "    def forward(self, x): return self.a(self.a(self.b(x.flatten(1))))\n"
    "def model(): return M()": "without its last layer 'a' the module computes something else",
}  # fmt: skip


@pytest.mark.parametrize("text", MODELS)
def test_models_without_a_head_are_refused_by_name(here, text):
    code(here, text)
    spec = edited(here, ("convnet:make_model\n  args: {width: 12}", "own:model"))
    with pytest.raises(ConfigError, match=MODELS[text]) as error:
        task_of(spec.task)
    assert "own:model" in str(error.value)


def test_weights_of_the_users_module_are_read_by_name(here):
    import convnet

    spec = load(here / "letters.yaml").task
    module = convnet.make_model(4, 12)
    whole = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": whole}, here / "weights.pt")
    pretrained = spec.model_copy(update={"pretrained": "weights.pt"})
    torch.manual_seed(0)
    made = task_of(pretrained).init()
    assert torch.equal(made["body.0.weight"], module[0].weight)
    assert not torch.equal(made["head.weight"], module[8].weight)  # the head is new
    adopted = task_of(spec).adopt(module.state_dict(), "here")
    assert torch.equal(adopted["head.weight"], module[8].weight)
    module[8] = torch.nn.Linear(16 * 12, 5)
    with pytest.raises(IncompatibleWeights, match=r"'head.weight' is \[5, 192\], but \[4, 192\]"):
        task_of(spec).adopt(module.state_dict(), "here")
    write_weights(here / "less.safetensors", {"0.weight": module[0].weight.detach()}, {})
    less = spec.model_copy(update={"pretrained": "less.safetensors"})
    with pytest.raises(IncompatibleWeights, match=r"there is no tensor 'body.0.bias'"):
        task_of(less).init()


OURS = {
    "a head alone": "def model(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))",
    "body and head": """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 4)
    def forward(self, x): return self.head(self.body(x))
def model(): return M()
""",
    "head and body": """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8))
        self.body = nn.Linear(8, 4)
    def forward(self, x): return self.body(self.head(x))
def model(): return M()
""",
}  # fmt: skip


@pytest.mark.parametrize("text", OURS.values(), ids=OURS)
def test_parts_of_the_module_may_have_the_names_of_soupray(here, text):
    code(here, text)
    task = task_of(edited(here, ("convnet:make_model\n  args: {width: 12}", "own:model")).task)
    import own

    module, images = own.model().eval(), torch.randint(0, 256, (6, 1, 32, 32)).byte()
    for theirs in (module.state_dict(), task.adopt(module.state_dict(), "here")):
        model = task.model().eval()
        model.load_state_dict(task.adopt(theirs, "here"))
        with torch.no_grad():
            assert torch.equal(model(task.inputs(images)), module(task.inputs(images)))
    check_task(task, images)
    task.export(task.adopt(module.state_dict(), "here"), here)
    again = own.model()
    again.load_state_dict(load_file(here / "model.safetensors"))
    assert torch.equal(again.state_dict()[task._last + ".weight"],
                       module.state_dict()[task._last + ".weight"])  # fmt: skip


def test_a_record_from_elsewhere_runs_no_function_of_this_machine(here, tmp_path, caplog):
    spec = load(here / "letters.yaml").task
    assert recorded_task(spec).init()
    evil = spec.model_copy(update={"model": "os:system", "args": {"command": "touch evil"}})
    with pytest.raises(ConfigError, match="must not name any function of this machine"):
        recorded_task(evil)
    assert not (here / "evil").exists()
    resnet = spec.model_copy(
        update={"model": "torchvision.models:resnet18", "args": {}, "mean": (0.5,) * 3,
                "std": (0.5,) * 3, "code": ""}
    )  # fmt: skip
    assert "head.weight" in recorded_task(resnet).init()
    other = spec.model_copy(update={"code": "0" * 64})
    recorded_task(other)
    assert "that of the sweep had 000000000000. Models of other code may compute" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("convnet:make_model", "convnett:make_model", "there is no module 'convnett'"),
        ("convnet:make_model", "convnet make", "is neither module:name nor the name of an entry"),
        ("letters:make_dataset", "nowhere:x", "there is no module 'nowhere'"),
        ("mean: [0.5]", "mean: [0.5, 0.5]", "mean and std have a number for each channel"),
        ("shifts: [rotated, small]", "shifts: [test]", "a shift cannot be called 'test'"),
        ("init: {trained: {lr: 3.0e-3, epochs: 2}}", "init: zero_shot", "has no zero-shot head"),
    ],
)
def test_specs_that_cannot_be_are_refused(here, old, new, says):
    with pytest.raises(ConfigError, match=says):
        edited(here, (old, new))


def test_a_name_that_is_no_corruption_is_a_split_of_the_function(here):
    spec = edited(here, ("[rotated, small]", "[rotatted]"))
    with pytest.raises(ConfigError, match=r"split 'rotatted': KeyError: 'rotatted'"):
        planned(spec)
