"""Retrieval with two towers: pairs by hand, embeddings as open_clip makes them, a sweep's soup."""

import csv
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from conftest import inside
from pictures import write_image
from PIL import Image
from safetensors.torch import save_file

import soupray
from soupray.core.captions import MARK, are_captioned, as_fields, form_of, unpack_captioned
from soupray.core.errors import ConfigError
from soupray.core.texts import pack
from soupray.data.cache import open_data, planned
from soupray.data.decoding import Look
from soupray.inference.inputs import ImageReader
from soupray.operations.estimate import dry_run
from soupray.operations.measuring import measure
from soupray.search.state import basis_key
from soupray.spec.sweep_spec import SweepSpec
from soupray.tasks import task_of
from soupray.training.worker import make_basis

TOKENS = 12
CONFIG = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1,
                       "head_width": 8},
        "text_cfg": {"context_length": TOKENS, "vocab_size": 49408, "width": 16, "heads": 2,
                     "layers": 1},
    },
    "preprocess_cfg": {"size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
}  # fmt: skip
CAPTIONS = [
    f"a {how} picture of {what}"
    for what in ("soup", "salt", "the sea", "wind", "a road")
    for how in ("small", "dark", "Zürich", "blurred")
]
"""Twenty captions, all different."""


def write_table(folder, name: str, pairs) -> None:
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *pairs])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny CLIP with open_clip's whole vocabulary, twenty JPEG files, and their tables."""
    folder = tmp_path_factory.mktemp("captions")
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(**CONFIG["model_cfg"])
    (folder / "clip").mkdir()
    save_file(clip.state_dict(), folder / "clip" / "open_clip_model.safetensors")
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(CONFIG))
    for number in range(20):
        write_image(folder / "images" / f"{number}.jpg", number)
    pairs = [(f"images/{number}.jpg", caption) for number, caption in enumerate(CAPTIONS)]
    write_table(folder, "train.csv", pairs[:14])
    write_table(folder, "test.csv", pairs[14:])
    (folder / "store").mkdir()
    return folder


def spec(folder, **keys) -> SweepSpec:
    plain = {
        "name": "captions",
        "metric": "recall_at_1",
        "evaluation_batch": 4,
        "task": {"kind": "open_clip", "model": f"local-dir:{folder}/clip", "scale": 20},
        "data": {"kind": "captions", "train": f"{folder}/train.csv", "test": f"{folder}/test.csv",
                 "held_out": 5},
        "objective": "retrieval",
        "search": {"trials": 2, "space": {"lr": 5e-3, "epochs": 2, "batch_size": 4}},
        "storage": f"file://{folder}/store",
        "tracking": "off",
        "recipes": {"uniform": {}, "greedy": {}, "wise_ft": {}, "ensemble": {}},
    }  # fmt: skip
    merged = {
        name: {**plain[name], **value} if name in ("task", "data", "search") else value
        for name, value in keys.items()
    }
    return SweepSpec(**{**plain, **merged})


@torch.inference_mode()
def by_open_clip(where: str, folder, table: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of images and captions of a table, by nothing but open_clip and Pillow."""
    clip, _, transform = open_clip.create_model_and_transforms(where)
    with (folder / table).open() as file:
        rows = list(csv.DictReader(file))
    images = torch.stack([transform(Image.open(folder / row["image"])) for row in rows])
    tokens = open_clip.get_tokenizer(where)([row["caption"] for row in rows])
    clip.eval()
    return clip.encode_image(images, normalize=True), clip.encode_text(tokens, normalize=True)


# ---- pairs


def test_a_row_has_the_image_and_its_caption():
    form = form_of(2, 9)
    rows = np.zeros((3, form.itemsize), np.uint8)
    fields = as_fields(rows, form)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    fields["mark"][:2], fields["side"][:2], fields["pixels"][:2] = MARK, 2, pixels
    fields["caption"][:2] = pack(["日本語", "salt"])
    assert rows[0, :4].tolist() == [MARK, 0, 2, 0]  # the side has two bytes
    images, captions = unpack_captioned(rows)
    assert (images[:2] == pixels).all()
    assert captions == ["日本語", "salt", ""]  # a row of zeros fills up a batch
    assert not images[2].any()
    assert are_captioned(rows)
    assert not are_captioned(pack(["日本語", "salt"]))
    assert form_of(300, 1).itemsize == 3 + 3 * 300 * 300 + 1


def test_equal_images_and_equal_captions_have_equal_numbers(world, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    shutil.copy(world / "images" / "2.jpg", tmp_path / "images" / "copy.jpg")
    pairs = [("2.jpg", "salt"), ("3.jpg", "soup"), ("copy.jpg", "soup"), ("2.jpg", "the sea")]
    write_table(tmp_path, "several.csv", [(f"images/{name}", said) for name, said in pairs])
    shift = {"shifts": {"several": f"{tmp_path}/several.csv"}}
    data = open_data(spec(world, data={**shift, "overlap": "drop"}), tmp_path / "cache")
    assert data.samples(data.split("several"))[1].tolist() == [[0, 0], [1, 1], [0, 1], [0, 3]]
    assert data.split("several").role == "shift"
    # 2.jpg and 3.jpg are reported there, and so in neither of the other splits.
    assert sum(s.size for s in data.splits) == 4 + 6 + 14 - 2


def test_all_captions_of_an_image_are_in_one_split(world, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    pairs = [(f"images/{k // 3}.jpg", f"caption {k}") for k in range(30)]
    write_table(tmp_path, "train.csv", pairs)
    made = spec(world, data={"train": f"{tmp_path}/train.csv", "held_out": 4})
    sizes, classes, _ = planned(made)
    assert [size for _, _, size in sizes] == [18, 12, 6]  # 6 and 4 images with three captions each
    assert [(c.name, c.train, c.held_out) for c in classes] == [("document", 18, 12)]
    data = open_data(made, tmp_path / "cache")
    numbers = [set(data.samples(data.split(n))[1][:, 0].tolist()) for n in ("train", "held_out")]
    assert len(numbers[0]) == 6
    assert numbers[0] | numbers[1] == set(range(0, 30, 3))
    with pytest.raises(ConfigError, match=r"need 10 pairs and .* has 10 of different queries. Low"):
        planned(spec(world, data={"train": f"{tmp_path}/train.csv", "held_out": 10}))


@pytest.mark.parametrize(
    ("pairs", "keys", "says"),
    [
        ([("images/99.jpg", "gone")], {}, r"1 of 1 images of the odd split cannot be read: odd/0"),
        ([("train.csv", "a table")], {}, r"1 of 1 images of the odd split cannot be read: odd/0"),
        ([("images/1.jpg", " ")], {}, r"odd.csv:2: the caption, in column 'caption', is empty. Re"),
        ([("images", "a folder")], {}, r"odd/0 \(\[Errno 22\] a folder, not a file: "),
        ([("a\0.jpg", "no path")], {}, r"odd/0 \(\[Errno 22\] a path cannot have a NUL in it: '/"),
        ([(" ", "nothing")], {}, r"odd.csv:2: the text is empty. Remove that line"),
        ([("images/1.jpg", "long " * 500)], {}, "1 of 1 texts are longer than data.max_bytes = 20"),
        ([], {}, "there is no pair in it"),
        ([("images/1.jpg", "a")], {"caption_column": "text"}, "Name the columns in data.image_co"),
        ([("images/1.jpg", "a"), ("images/15.jpg", "b")], {},
         r"1 of . images of the (held_out|train) split are in another split too"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_used_are_named(world, tmp_path, pairs, keys, says):
    shutil.copytree(world / "images", tmp_path / "images")
    write_table(tmp_path, "odd.csv", pairs)
    keys = {**keys, "shifts": {"odd": f"{tmp_path}/odd.csv"}}
    with pytest.raises(ConfigError, match=says):
        open_data(spec(world, data=keys), tmp_path / "cache")


def test_a_missing_image_is_left_out_on_request(world, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    pairs = [("images/15.jpg", "a"), ("images/99.jpg", "b"), ("images/16.jpg", "c")]
    write_table(tmp_path, "odd.csv", [*pairs, ("images/1.jpg", " ")])
    keys = {"shifts": {"odd": f"{tmp_path}/odd.csv"}, "on_error": "skip"}
    data = open_data(spec(world, data=keys), tmp_path / "cache")
    rows, numbers = data.samples(data.split("odd"))
    assert unpack_captioned(np.asarray(rows))[1] == ["a", "c"]
    assert numbers.tolist() == [[0, 0], [2, 2]]
    assert any("1 of 3 images of the odd split cannot be read: odd/1" in n for n in data.notes)
    (rows_left_out,) = (n for n in data.notes if n.startswith("1 of 4 rows of "))
    assert "odd.csv:5: the caption, in column 'caption', is empty" in rows_left_out


def test_a_caption_that_the_model_would_cut_is_refused(world, tmp_path):
    from soupray.services.place import Place

    shutil.copytree(world / "images", tmp_path / "images")
    long = "soup " * (TOKENS - 2)
    write_table(tmp_path, "fits.csv", [("images/1.jpg", long), ("images/2.jpg", "salt")])
    write_table(tmp_path, "long.csv", [("images/1.jpg", long + "soup"), ("images/2.jpg", "salt")])
    task = task_of(spec(world).task)
    assert task.pairs.lengths([long, long + "soup", "a"]) == [TOKENS, TOKENS + 1, 3]
    place = Place(storage=f"file://{world}/store", credentials=None, cache=str(tmp_path / "cache"))
    keys = {"overlap": "drop", "shifts": {"fits": f"{tmp_path}/fits.csv"}}
    fits = spec(world, data=keys)
    assert make_basis(fits, place, basis_key(fits)).split("fits").size == 2
    keys["shifts"] = {"long": f"{tmp_path}/long.csv"}
    says = (
        "long: 1 of 2 captions have more than the 12 tokens that this model reads, the longest 13"
    )
    with pytest.raises(ConfigError, match=says):
        make_basis(spec(world, data=keys), place, "")
    cut = spec(world, data={**keys, "on_long": "cut"})
    notes = make_basis(cut, place, basis_key(cut)).notes
    assert notes[-1] == "1 of 2 captions of the long split are cut to 12 tokens"


def test_the_dry_run_measures_pairs(world):
    made = spec(world)
    cost = dry_run(made)
    assert (cost.inputs.size, cost.inputs.decoded) == ((32, 32), 32)
    assert cost.stored_bytes > 2 * 5 * 2 * 8 * 4  # two embeddings of 8 numbers for each pair
    found = measure(made, cost)
    assert found.step_seconds > 0
    assert found.batch_size == 4
    assert found.pass_seconds > 0


# ---- specs


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"objective": "one_class", "metric": "accuracy"}, "captions have no targets of one_class"),
        ({"task": {"classes": ["a", "b"]}}, "has documents and no classes; leave task.classes out"),
        ({"task": {"templates": ["a {}"]}}, "task.templates are of a head for classes; retrieval"),
        ({"data": {"caption_column": "image"}}, "data.image_column and data.caption_column are bo"),
        ({"search": {"train": "head"}}, "train: head is a linear layer for classes; retrieval"),
        ({"training": {"micro_batch": 2}}, "micro_batch divides a batch"),
        ({"recipes": {"wise_ft": {"dial": {}}}}, "There are none for captions: leave dial out"),
        *(
            ({"search": {"space": {"lr": 1e-3, "epochs": 1, name: 0.5}}}, says)
            for name, says in (("flip", "flip changes images and not their captions"),
                               ("mixup", "mixup "), ("layer_decay", "counts the blocks of one"),
                               ("focal", "focal is for "))
        ),
    ],
)  # fmt: skip
def test_what_two_towers_do_not_have_is_refused(world, keys, says):
    with pytest.raises(ConfigError, match=says):
        spec(world, **keys)


def test_captions_are_for_open_clip_and_a_head_needs_prompts(world):
    whole = spec(world).model_dump(mode="json")
    with pytest.raises(ConfigError, match="a transformers model cannot read data of kind captio"):
        SweepSpec(**{**whole, "task": {"kind": "transformers", "model": "x"}})
    with pytest.raises(ConfigError, match="a timm model cannot read captions; data of kind capti"):
        SweepSpec(**{**whole, "task": {"kind": "timm", "model": "resnet18", "classes": ["a"]}})
    text = {"kind": "text", "train": "a.csv", "test": "b.csv", "held_out": 5}
    with pytest.raises(ConfigError, match="a open_clip model cannot read data of kind text"):
        SweepSpec(**{**whole, "data": text})
    digits = {"kind": "digits", "train_per_class": 20, "held_out": 50}
    with pytest.raises(ConfigError, match="data of kind digits have no documents; retrieval nee"):
        SweepSpec(**{**whole, "data": digits})
    task = {"kind": "open_clip", "model": "soupray:digits", "classes": ["a", "b"]}
    with pytest.raises(ConfigError, match="templates has no prompt, and the zero-shot head is mad"):
        SweepSpec(name="x", task=task, data=digits, search=whole["search"])


# ---- the model


@torch.inference_mode()
def test_embeddings_are_those_of_open_clips_own_towers(world, tmp_path):
    made = spec(world)
    task, data = task_of(made.task), open_data(made, tmp_path)
    assert made.data.size == 32  # of the checkpoint
    model = task.model()
    model.load_state_dict(task.init())
    assert not [name for name in model.state_dict() if "logit" in name or "head" in name]
    rows, _ = data.samples(data.split("test"))
    samples = torch.from_numpy(np.array(rows))
    images, captions = by_open_clip(f"local-dir:{world}/clip", world, "test.csv")
    outputs = model.eval()(task.inputs(samples))
    assert outputs.shape == (6, 2 * task.width)
    assert torch.allclose(outputs, torch.cat([images, captions], dim=1), atol=1e-6)
    assert torch.allclose(outputs[:, :8].norm(dim=1), torch.ones(6))
    pixels, texts = unpack_captioned(np.asarray(rows))
    assert texts == CAPTIONS[14:]
    assert torch.allclose(model(task.inputs(torch.from_numpy(pixels.copy()))), images, atol=1e-6)
    assert torch.allclose(model(task.inputs(torch.from_numpy(pack(texts)))), captions, atol=1e-6)
    # Whole numbers, which bfloat16 would round, stay as they are.
    low = model.to(torch.bfloat16)(task.inputs(samples)).float()
    assert torch.allclose(low, outputs, atol=0.02)


@torch.inference_mode()
def test_what_is_adopted_is_exported_as_it_was(world, tmp_path):
    task = task_of(spec(world).task)
    clip = open_clip.create_model(f"local-dir:{world}/clip")
    adopted = task.adopt(clip.state_dict(), "x")
    assert {n: (t == adopted[n]).all() for n, t in task.init().items()} == dict.fromkeys(adopted, 1)
    moved = {name: tensor + 0.01 for name, tensor in adopted.items()}
    where = eval(task.export(moved, tmp_path), {"open_clip": open_clip}).eval()
    assert float(where.logit_scale.exp()) == pytest.approx(20)  # task.scale
    back = task.adopt(where.state_dict(), "x")
    assert all(torch.equal(back[name], tensor) for name, tensor in moved.items())


@torch.inference_mode()
@pytest.mark.parametrize(("model", "text"), [("soupray:digits", "a photo of the number five."),
                                             ("clip", "Write a text here.")])  # fmt: skip
def test_the_code_beside_an_export_gives_the_same_similarity(world, tmp_path, monkeypatch, capsys,
                                                             model, text):  # fmt: skip
    named = model if model.startswith("soupray") else f"local-dir:{world}/clip"
    task = task_of(spec(world, task={"model": named}).task)
    weights = task.init()
    task.export(weights, tmp_path)
    shutil.copy(world / "images" / "0.jpg", tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(task.example(), {})
    network = task.model()
    network.load_state_dict(weights)
    reader = ImageReader(Look(32, 3), lambda url: b"")
    pixels = torch.from_numpy(reader.read([world / "images" / "0.jpg"]).samples)
    images = network.eval()(task.inputs(pixels))
    captions = network(task.inputs(torch.from_numpy(pack([text]))))
    assert capsys.readouterr().out.strip() == str(images @ captions.T)


# ---- a sweep and its soup


def test_a_soup_of_two_towers_finds_what_open_clip_finds(world, tmp_path, monkeypatch, without_ray):
    monkeypatch.chdir(tmp_path)
    made = spec(world)
    soupray.run_sweep(made, home=tmp_path / "home", show=False)
    board = soupray.run_soup(made, home=tmp_path / "home", show=False)
    entries = {entry.name: entry for entry in board.entries}
    assert {"uniform", "greedy", "ensemble", "zero_shot", "best_single"} <= set(entries)
    assert any(name.startswith("wise_ft") for name in entries)
    home = ["--home", tmp_path / "home"]
    out = tmp_path / "uniform"
    inside("export", "captions:uniform", *home, "--output", out)
    images, captions = by_open_clip(f"local-dir:{out}", world, "test.csv")
    hits = (images @ captions.T).argmax(dim=1) == torch.arange(6)
    assert entries["uniform"].test.accuracy == pytest.approx(float(hits.float().mean()))
    # The model of the entry, for images and for texts.
    model = soupray.load("captions:uniform", home=tmp_path / "home")
    files = [world / "images" / f"{number}.jpg" for number in range(14, 20)]
    assert np.allclose(model.predict(files), images, atol=1e-6)
    assert np.allclose(model.texts().predict(CAPTIONS[14:]), captions, atol=1e-6)
    assert model.predict([]).shape == (0, 8)
    assert "an embedding of each image" in model.summary()
    # What a page suggests is not refused: a server and a graph would be.
    kept = tmp_path / "home" / "sweeps" / "captions.yaml"
    for entry, export in (("uniform", ""), ("ensemble", " --format folder")):
        taken = entry == board.run.champion.name
        what = "captions@champion" if taken else f"'captions:{entry}'"
        shown = json.loads(inside("show", kept, entry, "--json", *home).stdout)["use"]
        assert shown == [f"soupray predict {what} INPUT...", f"soupray export {what}{export}"]
    assert "an embedding of each text" in model.texts().summary()
    with pytest.raises(ConfigError, match="uniform reads images and captions: one graph has one i"):
        model.network()
    both = soupray.load("captions:ensemble", home=tmp_path / "home")
    assert both.texts().predict(["salt"]).shape == (1, 16)
    said = inside("predict", "captions:uniform", world / "test.csv", "--texts", "--column",
                  "caption", *home)  # fmt: skip
    first = next(csv.DictReader(said.stdout.splitlines()))
    assert np.allclose(list(map(float, first["embedding"].split())), captions[0], atol=1e-6)
    # A folder with all that the model needs, without the store.
    inside("export", "captions:uniform", "--format", "folder", *home, "--output", tmp_path / "all")
    alone = soupray.load(tmp_path / "all", home=tmp_path / "nowhere")
    assert np.array_equal(
        alone.texts().predict(CAPTIONS[14:]), model.texts().predict(CAPTIONS[14:])
    )
    with pytest.raises(ConfigError, match="vrf"):
        soupray.run_soup(made, ["vrf"], home=tmp_path / "home", show=False)


# ---- captions that a model cannot tell apart


def test_captions_of_equal_tokens_are_counted_and_one_of_none_is_refused(world):
    pairs = task_of(spec(world).task).pairs

    def rows(*captions: str) -> np.ndarray:
        form = form_of(1, 40)
        found = np.zeros((len(captions), form.itemsize), np.uint8)
        fields = as_fields(found, form)
        fields["mark"], fields["side"] = MARK, 1
        packed = pack(list(captions))
        fields["caption"][:, : packed.shape[1]] = packed
        return found

    said = "2 of 4 different captions of the odd split have the tokens of another one"
    # Of equal captions there is one document; case and spaces are no part of the tokens.
    found = pairs.long("odd", rows("a dog", "A dog", "a  dog", "a dog", "salt"), cuts=False)
    assert found == [f"{said} ('A dog', 'a dog'): no model finds them"]
    assert pairs.long("odd", rows("a dog", "a dog", "salt"), cuts=False) == []
    with pytest.raises(ConfigError, match="odd: the caption '&nbsp;' has no tokens for this model"):
        pairs.long("odd", rows("a dog", "&nbsp;"), cuts=False)
