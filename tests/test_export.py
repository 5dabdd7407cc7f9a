"""`soupray export`: each format is read by the program that it is for, and its logits compared."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import inside, leaderboard
from huggingface_hub import CommitOperationAdd, ModelCard
from pictures import SPEC, pixels
from PIL import Image
from shared import ingredient, scores
from test_exchange import MIXTRAL, text_world
from tiny_text import texts, tiny_text, write_world

import soupray
from soupray.core.candidates import Candidate, EntropyEnsemble, VRFEnsemble, ensemble_of, mean_of
from soupray.core.errors import EvaluationError
from soupray.core.ports import Origin
from soupray.core.records import encode
from soupray.core.trials import STATISTICS
from soupray.data.decoding import Look
from soupray.inference.network import Network
from soupray.operations import graph_files
from soupray.operations.exporting import differences, export
from soupray.operations.model_card import Facts
from soupray.reporting.model_folder import write_folder
from soupray.reporting.recipe_file import RecipeFile, spec_of
from soupray.search.state import find_basis
from soupray.services.place import find_place
from soupray.spec.sweep_spec import SweepSpec, parse
from soupray.store.checkpoints import Checkpoints
from soupray.tasks import task_of
from soupray.tasks.foreign import named_classes

EXACT = 2e-5
"""Largest difference of logits up to 20: other kernels and other padding change low bits."""


class Made(NamedTuple):
    """Two models near each other, recipes of them, and inputs."""

    folder: Path
    spec: SweepSpec
    inputs: list

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def what(self, name: str) -> str:
        return str(self.folder / f"{name}.recipe.json")


def write_recipes(spec: SweepSpec, folder: Path, shape: tuple[int, ...] | None) -> None:
    """Of two models: soup, in weight space, and the ensembles logits, probs, vrf and entropy."""
    (folder / "store").mkdir(exist_ok=True)
    place, task = find_place(spec, folder / "home"), task_of(spec.task)
    checkpoints = Checkpoints(place.open_store(), place.folder / "weights")
    shas = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = {n: t + 0.02 * torch.rand(t.shape) for n, t in task.init().items()}
        shas.append(checkpoints.save(state, {}).sha256)
    parts = [(mean_of([shas[0]]), 1, 0.7), (mean_of([shas[1]]), 3, 1.9)]
    moved = {n: t + 0.1 for n, t in state.items() if n.endswith(STATISTICS)}
    soup = mean_of(shas)
    statistics = {soup.digest: checkpoints.save_blob(moved, {})} if moved else {}
    failures = checkpoints.save_blob({"features": torch.eye(3, 8)}, {})
    vrf = VRFEnsemble(
        fine_tuned=parts[0][0], reference=parts[1][0], temperatures=(1.0, 1.0), failures=failures,
        k=1, a=1.0, b=1.0,
    )  # fmt: skip
    candidates: dict[str, Candidate] = {
        "soup": soup,
        "logits": ensemble_of(parts, 4, "logits"),
        "probs": ensemble_of(parts, 4, "probabilities"),
        "vrf": vrf,
        "entropy": EntropyEnsemble(parts=tuple((model, t) for model, _, t in parts)),
    }
    for name, candidate in candidates.items():
        recipe = RecipeFile(
            name=name, recipe="uniform", options={}, candidate=candidate,
            ingredients=dict(zip(shas, ("t0", "t1"), strict=True)), statistics=statistics,
            sha256=None,
            spec=spec.model_dump(mode="json"), shape=shape,
        )  # fmt: skip
        (folder / f"{name}.recipe.json").write_bytes(encode(recipe))


MODEL = "args: {stem_width: 16, channels: [8, 8, 8, 8]}\n  interpolation: bilinear\n  crop: 0.8"
OWN = (
    ("seed: 0", "seed: 0\nanchor: init\ninit: {probe: {}}"),
    ('templates: ["about {}"]', "pooling: own\n  normalise: false"),
)
LOOKS = {"shortest": MODEL, "squash": f"{MODEL}\n  resize: squash"}


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> dict[str, Made]:
    """By name: open_clip is the main job; the others have a store of their own and no data."""
    found = {
        "clip": Made(run.folder, spec_of(soupray.load("mini:greedy", home=run.home).recipe), [])
    }
    for name, look in LOOKS.items():
        folder = tmp_path_factory.mktemp(name)
        data = "kind: folder\n  train: nowhere\n  test: nowhere\n  held_out: 3\n  size: 20"
        text = SPEC.format(classes="classes: [ant, bee, cat]", data=f"  {data}")
        text = text.replace("  size: 16\n", f"  size: 20\n  {look}\n")
        text = text.replace("storage: embedded", f"storage: file://{folder}/store")
        found[name] = Made(folder, parse(text, "x"), [pixels(3, (40, 22)), pixels(4, (23, 50))])
        write_recipes(found[name].spec, folder, None)
    for pooling in ("mean", "own"):
        folder = write_world(tmp_path_factory.mktemp(pooling))
        edits = OWN if pooling == "own" else ()
        spec = tiny_text(folder, *edits)
        found[pooling] = Made(folder, spec, [*texts("food", 3), *texts("weather", 2)])
        write_recipes(spec, folder, None)
    return found


def exported(one: Made, name: str, kind: str, folder: Path) -> dict:
    """What `soupray export --json` prints."""
    what = name if ":" in name else one.what(name)
    done = inside(
        "export", what, "--home", one.home, "--format", kind, "--output", folder, "--json"
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["clip", "shortest", "squash", "mean", "own"])
def test_the_hubs_folder_is_used_by_its_library_alone_as_its_card_says(
    made, name, tmp_path, monkeypatch
):
    one, folder = made[name], tmp_path / "up"
    what = "mini:greedy" if name == "clip" else "soup"
    said = exported(one, what, "hub", folder)
    card = ModelCard.load(folder / "README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    model = soupray.load(what if ":" in what else one.what(what), home=one.home)
    images = model.reader.kind == "images"
    given = pixels(7, (40, 26)) if images else one.inputs[0]
    monkeypatch.chdir(folder)
    if images:
        picture = Image.fromarray(given).convert("L" if name == "clip" else "RGB")
        picture = picture.resize((32, 32)) if name == "clip" else picture
        picture.save("photo.png")
        given = Image.open("photo.png")
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace('"Write a text here."', repr(given)), names)
    assert printed.getvalue().split() == model.predict([given])
    found, expected = names["logits"].numpy(), model.logits([given])
    assert np.abs(found - expected).max() < EXACT
    if images:  # the library's transform gives the same input, bit for bit
        mine = task_of(one.spec.task).inputs(torch.from_numpy(model.preprocess([given])))
        assert torch.equal(names["image"].expand(mine.shape[1:]), mine[0])
    assert named_classes(folder) == list(model.classes)
    data = card.data
    assert data.license == ("apache-2.0" if name == "clip" else "unknown")
    assert data.library_name == one.spec.task.kind
    assert (data.pipeline_tag == "feature-extraction") == (name == "mean")
    assert f"{what.removeprefix('mini:')}.recipe.json" in said["files"]
    for file in folder.iterdir():  # as upload_folder makes them
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)


def test_the_card_has_the_scores_of_the_leaderboard_and_the_digests(made, run, tmp_path):
    entry = next(e for e in leaderboard(run.output) if e["name"] == "greedy")
    exported(made["clip"], "mini:greedy", "hub", tmp_path / "up")
    card = ModelCard.load(tmp_path / "up" / "README.md")
    scores = {r.dataset_split: r.metric_value for r in card.data.eval_results}
    measured = {"test": entry["test"], **entry["shifts"]}
    assert scores == {name: round(m["accuracy"], 6) for name, m in measured.items()}
    for name, m in {"held-out": entry["held_out"], **measured}.items():
        row = next(line for line in card.text.splitlines() if f"{name} | {m['n']} |" in line)
        assert (
            f"| {100 * m['accuracy']:.1f} % | {100 * m['low']:.1f} to {100 * m['high']:.1f} %"
            in row
        )
    for name in entry["ingredients"]:
        assert f"| {name} |" in card.text.replace("\\", "")
    spec, _, store = run.world()
    for split in find_basis(store, spec).splits:
        assert f"| {split.size} | `{split.digest}` |" in card.text
    assert "soupray rebuild greedy.recipe.json" in card.text
    done = inside("rebuild", tmp_path / "up" / "greedy.recipe.json", *run.where, "--json")
    again = json.loads(done.stdout)
    assert again["sha256"] == again["recorded"]


def test_a_card_without_a_leaderboard_says_so(made, tmp_path):
    exported(made["own"], "soup", "hub", tmp_path / "up")
    card = ModelCard.load(tmp_path / "up" / "README.md")
    assert "No leaderboard in the store has this model" in card.text
    assert card.data.eval_results is None
    assert "no metadata of these weights on the machine of the export named one" in card.text


@pytest.mark.parametrize(
    ("name", "entry", "kind"),
    [
        ("clip", "mini:greedy", "onnx"),
        ("clip", "mini:greedy", "torch"),
        ("shortest", "probs", "onnx"),
        ("shortest", "probs", "torch"),
        ("own", "logits", "onnx"),
        ("mean", "probs", "torch"),
        ("shortest", "entropy", "onnx"),
        ("shortest", "entropy", "torch"),
    ],
)
def test_a_graph_gives_soupray_s_logits_for_any_number_of_inputs(made, name, entry, kind, tmp_path):
    one = made[name]
    said = exported(one, entry, kind, tmp_path)
    parity = said["parity"]
    assert 0 <= parity["largest"] <= EXACT < parity["allowed"]
    assert parity["same_class"] == parity["samples"] == 64
    assert parity["inputs"] == ("held-out" if name == "clip" else "random")
    model = soupray.load(entry if ":" in entry else one.what(entry), home=one.home)
    inputs = one.inputs or list(
        np.random.default_rng(1).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    )
    if model.reader.kind == "texts":
        tokens = task_of(one.spec.task).tokenizer(inputs, padding="max_length", max_length=8)
        given = np.array(tokens["input_ids"])
        assert {"tokenizer.json", "tokenizer_config.json"} <= set(said["files"])
    else:
        given = model.preprocess(inputs)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        about = session.get_modelmeta().custom_metadata_map
        classes, argument = json.loads(about["classes"]), json.loads(about["input"])["name"]
        found = [session.run(None, {argument: given[:n]})[0] for n in (1, len(given))]
    else:
        files = {"soupray.json": ""}
        module = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
        about = json.loads(files["soupray.json"])
        classes = about["classes"]
        found = [module(torch.from_numpy(given[:n])).numpy() for n in (1, len(given))]
    assert classes == list(model.classes)
    assert about["candidate"] == model.recipe.candidate.digest
    expected = model.logits(inputs)
    assert np.abs(found[0] - expected[:1]).max() < EXACT
    assert np.abs(found[1] - expected).max() < EXACT


def test_a_model_that_was_evaluated_in_bfloat16_is_a_graph_in_float32(made, tmp_path):
    one = made["shortest"]
    recipe = json.loads(Path(one.what("logits")).read_text())
    recipe["spec"]["precision"] = "bf16"
    path = tmp_path / "low.recipe.json"
    path.write_text(json.dumps(recipe))
    done = export(str(path), one.home, "torch")
    assert Path(done.folder) == tmp_path / "low-torch"
    assert 1e-4 < done.parity.largest < done.parity.allowed


def test_weights_of_gigabytes_lie_beside_their_graph(made, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_files, "LARGEST", 0)
    one = made["shortest"]
    done = export(one.what("soup"), one.home, "onnx", tmp_path)  # compared, so that it was read
    assert done.files == ("model.onnx", "model.onnx.data")


def test_a_graph_with_other_logits_is_refused_and_deleted(made, tmp_path, monkeypatch):
    right = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, samples: right(self, samples) + 0.01)
    said = r"soup: the logits of model.pt2 differ from those of soupray by up to 0\.01 on 64 random"
    with pytest.raises(EvaluationError, match=said):
        export(made["shortest"].what("soup"), made["shortest"].home, "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def refused(what: str, home: Path, kind: str, folder: Path) -> str:
    done = inside("export", what, "--home", home, "--format", kind, "--output", folder, check=False)
    assert done.returncode == 2
    return " ".join(done.stderr.split())


def test_what_a_format_cannot_have_is_refused_and_says_what_can(made, run, tmp_path, monkeypatch):
    clip, small, folder = made["clip"], made["shortest"], tmp_path / "x"
    said = refused(small.what("probs"), small.home, "library", folder)
    assert "probs makes its answers from the outputs of 2 models, which timm cannot" in said
    assert "--format onnx or torch writes it as one graph; or use soupray.load" in said
    said = refused(small.what("vrf"), small.home, "hub", folder)
    assert "is for one model alone. Use soupray.load or `soupray predict`." in said
    said = refused(small.what("vrf"), small.home, "onnx", folder)
    assert "looks for neighbours in a failure set, which no graph of layers can do" in said
    assert not folder.exists()
    (tmp_path / "mine.txt").touch()
    assert "is not empty, and upload_folder would" in refused(
        "mini:greedy", clip.home, "hub", tmp_path
    )
    monkeypatch.setattr(graph_files, "find_spec", lambda name: None)
    said = refused("mini:greedy", clip.home, "onnx", folder)
    assert (
        "needs onnx, onnxruntime, onnxscript, not installed here: pip install 'soupray[onnx]'"
        in said
    )


def test_what_onnx_has_no_layer_for_is_named(tmp_path):
    folder = text_world(tmp_path / "world", "mixtral", **MIXTRAL)  # mixtures of experts
    write_recipes(tiny_text(folder, *OWN), folder, None)
    said = refused(f"{folder}/soup.recipe.json", folder / "home", "onnx", tmp_path / "x")
    assert "soup: torch cannot write it as ONNX: No ONNX function found for <OpOverload" in said
    assert said.endswith("Use --format torch.")


def test_rebuild_and_export_take_what_load_takes(made, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = inside("rebuild", "mini:greedy", *run.where).stdout
    assert said.startswith("results/mini/greedy.safetensors  sha256 ")
    assert "the same bytes as recorded" in said
    said = inside("export", "mini:greedy", *run.where).stdout
    assert said.startswith("results/mini/greedy/ (config.json, head.safetensors, open_clip_")
    assert Path("results/mini/greedy/open_clip_config.json").is_file()


def test_a_model_folder_is_exported_without_its_store(made, tmp_path):
    clip, home = made["clip"], tmp_path / "empty home"
    model = soupray.load("mini:greedy", home=clip.home)
    folder = tmp_path / "folder"
    write_folder(model.recipe, lambda spec: find_place(spec, clip.home), folder)
    done = export(str(folder), home, "torch", tmp_path / "graph")
    assert done.parity.inputs == "random"  # the data are in another home
    files = {"soupray.json": ""}
    torch.export.load(tmp_path / "graph" / "model.pt2", extra_files=files)
    assert json.loads(files["soupray.json"])["temperature"] == model.recipe.temperature
    export(str(folder), home, "hub", tmp_path / "up")
    said = ModelCard.load(tmp_path / "up" / "README.md").text
    assert "No leaderboard in the store has this model" in said
    assert f"divide the logits by {model.recipe.temperature:.6g}" in said


def test_differences_are_said_in_words(made):
    def of(name: str, look=None, **fields: object) -> str:
        spec = made[name].spec
        spec = spec.model_copy(update={"task": spec.task.model_copy(update=fields)})
        return "; ".join(differences(spec, task_of(spec.task), look))

    assert of("shortest", Look(20, 3)) == ""
    assert "to 24 x 24 pixels, and then to 20 x 20 inside the model" in of("shortest", Look(24, 3))
    assert "Pictures were made grey" in of("shortest", Look(20, 1))
    said = of("clip", Look(32, 1), interpolation="lanczos", crop=0.9)
    assert "by lanczos interpolation, which the transform of open_clip does not have" in said
    assert "divided by 0.9, and their centre was cut out" in said
    assert "the normalised mean of the last hidden state and head.safetensors" in of("mean")
    assert "head" not in of("own")


def test_with_weights_of_others_in_it_the_licence_is_not_that_of_the_base():
    origin = Origin(name="base", licence="mit", read_from="README.md in its folder")
    mine = ingredient("mine", scores(9))
    theirs = msgspec.structs.replace(
        mine, trial=msgspec.structs.replace(mine.trial, method="imported", hparams={"file": "x.pt"})
    )
    facts = Facts(*[None] * 4, {}, origin, "", [], {})
    for trials, licence in (({"a": mine}, "mit"), ({"a": mine, "b": theirs}, "unknown")):
        assert facts._replace(trials=trials).licence == licence
    assert facts._replace(trials={"b": theirs}).imported == ["x.pt"]


def test_the_licence_is_read_and_never_guessed(made, tmp_path):
    def of(name: str, **fields: object):
        task = made[name].spec.task
        return task_of(task.model_copy(update=fields)).origin()

    assert of("shortest") is None  # drawn weights
    tag = of("shortest", pretrained="c3_in1k")
    assert (tag.hub, tag.licence) == ("timm/resnet10t.c3_in1k", "apache-2.0")
    (tmp_path / "x.safetensors").touch()
    assert of("shortest", pretrained=str(tmp_path / "x.safetensors")).licence == "unknown"
    clip = of("clip", model="ViT-B-32", pretrained="openai")
    assert (clip.hub, clip.licence) == ("timm/vit_base_patch32_clip_224.openai", "unknown")
    folder = Path(made["mean"].spec.task.model)
    for text, licence in (
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [a]\n---\n", "unknown"),
        ("---\n: [\n---\n", "unknown"),
        ("no front matter", "unknown"),
    ):
        (folder / "README.md").write_text(text)
        assert of("mean").licence == licence
    (folder / "README.md").unlink()
