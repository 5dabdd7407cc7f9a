"""Code that classifies one input with an exported folder, with the model's library alone.

The tests run it. It is Python as a user may paste it; the folder is the current one.
"""

from __future__ import annotations

import math
import re

from soupray.core.plugins import code_place
from soupray.spec.plugged_in import TASKS
from soupray.spec.task import TorchSpec, TransformersSpec

OPEN_CLIP = """\
import json
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = "."  # this folder: huggingface_hub.snapshot_download fetches it
clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
head = load_file(f"{folder}/head.safetensors")
classes = json.loads(Path(folder, "config.json").read_text())["label_names"]
image = transform(Image.open("photo.png"))
with torch.inference_mode():
    features = torch.nn.functional.normalize(clip.eval().encode_image(image[None]), dim=-1)
    logits = torch.nn.functional.linear(features, head["weight"], head.get("bias"))
print(classes[int(logits.argmax())])
"""

_TWO_TOWERS = """\
{imports}import open_clip
import torch
from PIL import Image
{ours}
folder = "."  # this folder: huggingface_hub.snapshot_download fetches it
clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
{tokenizer}
image = transform(Image.open("photo.png"))
with torch.inference_mode():
    images = clip.eval().encode_image(image[None], normalize=True)
    captions = clip.encode_text(tokenize(["{text}"]), normalize=True)
print(images @ captions.T)
"""

_TIMM = """\
import timm
import torch
from PIL import Image

folder = "."  # this folder: huggingface_hub.snapshot_download fetches it
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("photo.png").convert("{mode}"))
with torch.inference_mode():
    logits = model(image[None])
print(model.pretrained_cfg["label_names"][int(logits.argmax())])
"""

_TORCH = """\
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from {module} import {name}

folder = "."  # this folder
config = json.loads(Path(folder, "config.json").read_text())
model = {name}(**config["args"]).eval()
model.load_state_dict(load_file(f"{{folder}}/model.safetensors"))
to_inputs = v2.Compose([
    v2.Resize({resized}, v2.InterpolationMode.{method}),
    v2.CenterCrop(config["size"]),
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(config["mean"], config["std"]),
])
with torch.inference_mode():
    logits = model(to_inputs(Image.open("photo.png").convert("{mode}"))[None])
print(config["label_names"][int(logits.argmax())])
"""

_TRANSFORMERS = """\
import torch
from transformers import AutoTokenizer, {kind}

folder = "."  # this folder: huggingface_hub.snapshot_download fetches it
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {kind}.from_pretrained(folder).eval()
text = "Write a text here."
tokens = tokenizer([text], truncation=True, return_token_type_ids=False, return_tensors="pt")
with torch.inference_mode():
    {logits}
print(model.config.id2label[int(logits.argmax())])
"""
_POOLED = {
    "mean": """\
mask = tokens["attention_mask"][..., None]
    features = (states * mask).sum(1) / mask.sum(1)""",
    "cls": "features = states[:, 0]",
}
_NORMALISED = """
    features = torch.nn.functional.normalize(features, dim=-1)"""
_CLASS = "print(model.config.id2label[int(logits.argmax())])\n"
_WITHOUT_HEAD = """\
states = model(**tokens).last_hidden_state
    {features}"""
_WITH_HEAD = """\
states = model(**tokens).last_hidden_state
    {features}
    head = load_file(f"{{folder}}/head.safetensors")
    logits = torch.nn.functional.linear(features, head["weight"], head.get("bias"))"""


_ANSWER = re.compile(r"print\((.+)\[int\(logits\.argmax\(\)\)\]\)")
_ANSWERS = {
    "multi_label": r"print([name for name, logit in zip(\1, logits[0]) if logit > 0])",
    "regression": r"print(dict(zip(\1, logits[0].tolist())))",
    "segmentation": r"print({\1[0]: float((logits > 0).float().mean())})  # share of the pixels",
}


def answering(example: str, kind: str) -> str:
    """Return an example that prints what the outputs mean: a class, classes, numbers, or a mask.

    Args:
        example: prints the class with the largest output.
        kind: of the objective.
    """
    return _ANSWER.sub(_ANSWERS[kind], example) if kind in _ANSWERS else example


def timm_example(channels: int) -> str:
    """Return the code for a model of timm.

    Args:
        channels: of its inputs. One: pictures are made grey.
    """
    return _TIMM.format(mode="L" if channels == 1 else "RGB")


def torch_example(spec: TorchSpec) -> str:
    """Return the code for a module of the user.

    Args:
        spec: names the function, and says how images become inputs.
    """
    module, _, name = code_place(TASKS, spec.model).partition(":")
    side = math.floor(spec.size / spec.crop)
    return _TORCH.format(
        module=module,
        name=name,
        resized=f"({side}, {side})" if spec.resize == "squash" else side,
        method=spec.interpolation.upper(),
        mode="L" if len(spec.mean) == 1 else "RGB",
    )


def transformers_example(kind: str, spec: TransformersSpec) -> str:
    """Return the code for a model of transformers.

    Args:
        kind: the class of transformers that loads it.
        spec: says how features are made. With `pooling: own` the model has the head in it.
    """
    if spec.pooling == "own":
        return _TRANSFORMERS.format(kind=kind, logits="logits = model(**tokens).logits")
    features = _POOLED[spec.pooling] + (_NORMALISED if spec.normalise else "")
    if spec.outputs == "embeddings":
        code = _TRANSFORMERS.format(kind=kind, logits=_WITHOUT_HEAD.format(features=features))
        return code.replace(_CLASS, "print(features.shape)  # inner products rank documents\n")
    code = _TRANSFORMERS.format(kind=kind, logits=_WITH_HEAD.format(features=features))
    return code.replace(
        "from transformers", "from safetensors.torch import load_file\nfrom transformers"
    )


def two_towers_example(cut: bool) -> str:
    """Code for both towers of a CLIP. It prints the inner product of an image and a text.

    Args:
        cut: the tokenizer is soupray's own, with the few words of the demo's model: open_clip has
            none for it.
    """
    if not cut:
        tokenizer = 'tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")'
        return _TWO_TOWERS.format(
            imports="", ours="", tokenizer=tokenizer, text="Write a text here."
        )
    return _TWO_TOWERS.format(
        imports="import json\nfrom pathlib import Path\n\n",
        ours="\nfrom soupray.tasks.vocabulary import CutTokenizer\n",
        tokenizer='kept = json.loads(Path(folder, "vocabulary.json").read_text())\n'
        'tokenize = CutTokenizer(kept["full_token_ids"], clip.context_length)',
        text="a photo of the number five.",
    )
