import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from shared import demo

from soupray.core.errors import ConfigError
from soupray.data.digits import load_digits
from soupray.tasks.files import ASSETS
from soupray.tasks.open_clip import OpenClipTask
from soupray.tasks.vocabulary import CutTokenizer, cut_vocabulary

FOLDER = ASSETS / "digits"
VOCABULARY = json.loads((FOLDER / "vocabulary.json").read_text())
CONFIG = json.loads((FOLDER / "open_clip_config.json").read_text())
KEPT = VOCABULARY["full_token_ids"]
CONTEXT = CONFIG["model_cfg"]["text_cfg"]["context_length"]
WORDS = VOCABULARY["classes"] + [str(digit) for digit in range(10)]
PROMPTS = [template.format(word) for template in VOCABULARY["templates"] for word in WORDS]


@pytest.fixture(scope="module")
def tokenize() -> CutTokenizer:
    return CutTokenizer(KEPT, CONTEXT)


@pytest.fixture(scope="module")
def clip():
    return open_clip.create_model(f"local-dir:{FOLDER}").eval()


def test_ids_map_back_to_the_full_tokenizers(tokenize):
    full = open_clip.SimpleTokenizer(context_length=CONTEXT)
    assert torch.equal(torch.tensor(KEPT)[tokenize(PROMPTS)], full(PROMPTS))


def test_pad_is_first_and_end_of_text_is_largest(tokenize):
    full = open_clip.SimpleTokenizer()
    assert sorted(set(KEPT)) == KEPT
    assert (KEPT[0], KEPT[-1]) == (0, full.eot_token_id)
    assert CONFIG["model_cfg"]["text_cfg"]["vocab_size"] == len(KEPT)
    assert tokenize(["five"]).dtype == torch.int64
    assert tokenize(["five"]).shape == (1, CONTEXT)


def test_cut_vocabulary_is_the_packaged_one():
    assert cut_vocabulary(PROMPTS, CONTEXT) == KEPT


def test_cut_vocabulary_keeps_pad_where_no_text_is_padded():
    assert cut_vocabulary(["a five"], context_length=4)[0] == 0


def test_an_unknown_word_is_named_with_the_text_and_the_allowed_words(tokenize):
    with pytest.raises(ConfigError) as caught:
        tokenize(["a photo of the number six.", "a photo of the zebra six."])
    message = str(caught.value)
    assert "'zebra'" in message
    assert "'a photo of the zebra six.'" in message
    assert ", ".join(tokenize.words()) in message
    assert {"handwritten", "six", "6", "."} <= set(tokenize.words())


def test_a_text_that_would_be_truncated_is_refused(tokenize):
    fits = " ".join(["photo"] * (CONTEXT - 2))
    assert int(tokenize([fits])[0, -1]) == len(KEPT) - 1
    with pytest.raises(ConfigError, match=f"{CONTEXT + 1} tokens"):
        tokenize([f"{fits} photo"])


@torch.inference_mode()
def test_text_features_equal_those_of_a_full_embedding_table(clip, tokenize):
    full = open_clip.SimpleTokenizer(context_length=CONTEXT)
    text = CONFIG["model_cfg"]["text_cfg"] | {"vocab_size": full.vocab_size}
    wide = open_clip.model.CLIP(**CONFIG["model_cfg"] | {"text_cfg": text}).eval()
    weights = clip.state_dict()
    table = torch.randn(full.vocab_size, text["width"])
    table[KEPT] = weights["token_embedding.weight"]
    wide.load_state_dict(weights | {"token_embedding.weight": table})
    assert torch.equal(clip.encode_text(tokenize(PROMPTS)), wide.encode_text(full(PROMPTS)))


def test_the_packaged_weights_are_small_and_half_precision():
    file = FOLDER / "open_clip_model.safetensors"
    assert file.stat().st_size <= 3e6
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


@torch.inference_mode()
def test_zero_shot_accuracy_is_the_recorded_one(clip, tokenize):
    card = json.loads((FOLDER / "card.json").read_text())
    heads = [
        clip.encode_text(tokenize([t.format(c) for c in VOCABULARY["classes"]]), normalize=True)
        for t in VOCABULARY["templates"]
    ]
    samples = load_digits()
    mean, std = (
        torch.tensor(part).view(3, 1, 1) for part in (clip.visual.image_mean, clip.visual.image_std)
    )
    images = (torch.from_numpy(samples.images) / 255 - mean) / std
    predicted = (clip.encode_image(images) @ sum(heads).T).argmax(dim=1).numpy()
    accuracy = float((predicted == samples.labels).mean())
    assert accuracy == pytest.approx(card["zero_shot_accuracy_uci_digits"], abs=0.005)


def test_many_prompts_in_large_batches_give_the_head_of_few():
    few = demo().task
    many = few.model_copy(update={"classes": few.classes * 30})  # 600 prompts
    wanted, found = (OpenClipTask(spec).init()["head.weight"] for spec in (few, many))
    assert len(found) == 300
    assert torch.allclose(found.view(30, 10, -1), wanted[None], atol=1e-5, rtol=0)
