"""Inputs are those that the library of the checkpoint itself makes, for each family."""

import io
import logging

import open_clip
import pytest
import timm
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from pictures import encoded, pixels
from PIL import Image

from soupray.core.errors import ConfigError
from soupray.data.building import look_of
from soupray.data.decoding import decode
from soupray.spec.sweep_spec import SweepSpec, parse, parse_data
from soupray.tasks.pixels import Pixels

SPEC = """
name: inputs
task:
  kind: {kind}
  model: {model}
  pretrained: {pretrained}
  classes: [ant, bee]
  {more}
data: {{kind: folder, train: /data/train, test: /data/val, held_out: 2{data}}}
{start}
search: {{trials: 1, space: {{lr: 1e-3, epochs: 1}}}}
storage: embedded
tracking: "off"
recipes: {{}}
"""
CLIP = {"kind": "open_clip", "start": "init: zero_shot", "more": "templates: ['a {}']"}
TIMM = {"kind": "timm", "start": "init: {trained: {lr: 1e-3, epochs: 1}}\nanchor: init", "more": ""}
SHAPES = [(20, 24), (400, 300), (300, 400), (224, 224), (1000, 130), (97, 641), (256, 257)]


def spec(about: dict, model: str, pretrained: str, more: str = "", data: str = "") -> SweepSpec:
    """A spec with this model and further lines under `task` and `data`."""
    lines = about | {"more": "\n  ".join(filter(None, (about["more"], more)))}
    return parse(SPEC.format(model=model, pretrained=pretrained, data=data, **lines), "spec.yaml")


def ours(given: SweepSpec, jpeg: bytes) -> torch.Tensor:
    """The input [C, H, W] that soupray makes of an evaluated image."""
    image = decode(jpeg, look_of(given, given.data.size, train=False))
    task, side = given.task, given.data.size
    plain = open_clip.transform.OPENAI_DATASET_MEAN, open_clip.transform.OPENAI_DATASET_STD
    normalised = Pixels((side, side), task.mean or plain[0], task.std or plain[1])
    return normalised(torch.from_numpy(image.copy())[None])[0]


def same(given: SweepSpec, transform) -> None:
    for seed, shape in enumerate(SHAPES):
        jpeg = encoded(pixels(seed, shape))

        with Image.open(io.BytesIO(jpeg)) as image:
            theirs = transform(image.convert("RGB"))
        assert torch.allclose(ours(given, jpeg), theirs, atol=1e-6), shape


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-B-32-quickgelu", "openai"),  # OpenAI's mean and std, bicubic, the short side
        ("ViT-B-16-SigLIP", "webli"),  # 0.5, and both sides
        ("MobileCLIP-S1", "datacompdr"),  # 0 and 1, bilinear
        ("ViT-L-14-CLIPA", "datacomp1b"),  # ImageNet's, bilinear, both sides
    ],
)
def test_inputs_are_those_of_open_clip(model, tag):
    given = spec(CLIP, model, tag)
    about = get_pretrained_cfg(model, tag)
    names = ("mean", "std", "interpolation", "resize_mode")
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    assert given.data.size == size
    config = PreprocessCfg(size=size, **{name: about[name] for name in names})
    same(given, image_transform_v2(config, is_train=False))


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("resnet10t", "c3_in1k"),  # the centre of a larger image, 0.875
        ("vit_base_patch16_siglip_224", "webli"),  # mean and std 0.5, centre 0.9
        ("inception_v3", "tf_in1k"),  # 299 pixels
        ("mobilenetv3_large_100", "miil_in21k"),  # 0 and 1, bilinear
        ("vit_base_patch16_clip_384", "laion2b_ft_in1k"),  # both sides, the whole image
        ("vit_base_patch32_clip_384", "openai_ft_in12k_in1k"),  # both sides, centre 0.95
    ],
)
def test_inputs_are_those_of_timm(model, tag):
    given = spec(TIMM, model, tag)
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(f"{model}.{tag}").to_dict()
    )
    assert given.task.size == given.data.size == config["input_size"][1]
    same(given, timm.data.create_transform(**config, is_training=False))


def test_the_spec_overrides_the_checkpoint_and_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        given = spec(
            TIMM, "resnet10t", "c3_in1k", "crop: 1.0\n  mean: [0.5, 0.5, 0.5]", ", size: 64"
        )
    assert (given.task.crop, given.task.mean, given.task.size) == (1.0, (0.5, 0.5, 0.5), 176)
    assert given.task.std == timm.get_pretrained_cfg("resnet10t.c3_in1k").std
    assert given.data.size == 64
    assert "task.mean = [0.5, 0.5, 0.5] is used; the weights c3_in1k were trained with" in (
        caplog.text
    )
    assert "task.crop = 1.0 is used; the weights c3_in1k were trained with 0.875" in caplog.text


def test_a_gelu_that_is_not_the_checkpoints_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        spec(CLIP, "ViT-B-32-quickgelu", "openai")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        spec(CLIP, "ViT-B-32", "openai")
    assert "ViT-B-32 uses GELU, but the weights openai were trained with QuickGELU" in caplog.text
    assert "Write ViT-B-32-quickgelu" in caplog.text


def test_only_what_differs_from_the_usual_is_in_a_digest():
    usual = spec(CLIP, "ViT-B-32-quickgelu", "openai", data=", size: 224").task.model_dump()
    assert set(usual) == {"kind", "model", "pretrained", "classes", "templates"}
    siglip = spec(CLIP, "ViT-B-16-SigLIP", "webli").task.model_dump()
    assert set(siglip) - set(usual) == {"mean", "std", "resize"}
    # A stored spec is complete: what it does not say is what it was made with.
    stored = spec(TIMM, "resnet10t", "c3_in1k", "crop: 1.0").model_dump(mode="json")
    assert "crop" not in stored["task"]
    assert parse_data(stored, "recipe.json").task.crop == 1.0


def test_a_mode_that_soupray_does_not_have_is_refused_by_name():
    model, tag = next(
        name.split(".")
        for name in timm.list_pretrained()
        if timm.get_pretrained_cfg(name).crop_mode == "border"
    )
    with pytest.raises(ConfigError, match=r"spec\.yaml: task\.resize: .* crop mode 'border'"):
        spec(TIMM, model, tag)
    assert spec(TIMM, model, tag, "resize: squash").task.resize == "squash"
    with pytest.raises(ConfigError, match=r"task\.size: .* 1024 x 768 pixels"):
        spec(TIMM, "vit_base_patch16_sapiens2", "fb")
