"""An example of each field of a spec that people write, for messages about mistakes."""

from __future__ import annotations

from collections.abc import Sequence

EXAMPLES = {
    "name": "pets",
    "seed": "0",
    "threads": "1",
    "evaluation_batch": "250",
    "precision": "fp32",
    "metric": "accuracy",
    "task": "{kind: timm, model: resnet50, pretrained: a1_in1k, classes: [cat, dog]}",
    "task.kind": "open_clip",
    "task.model": "ViT-B-32",
    "task.pretrained": "openai",
    "task.classes": "[cat, dog]",
    "task.templates": '["a photo of a {}."]',
    "task.size": "224",
    "task.mean": "[0.5, 0.5, 0.5]",
    "task.std": "[0.5, 0.5, 0.5]",
    "task.max_tokens": "128",
    "data": "{kind: folder, train: pets/, test: 500, held_out: 500}",
    "data.kind": "folder",
    "data.train": "pets/",
    "data.test": "500",
    "data.held_out": "500",
    "data.size": "224",
    "data.shifts": "[blurred, faded]",
    "data.proxy_shifts": "[occluded]",
    "data.train_per_class": "20",
    "data.folders": "[/usr/share/datasets/fashion-mnist]",
    "data.root": "/data/cifar10",
    "data.path": "/data/beans",
    "data.name": "CIFAR10",
    "data.label_map": "labels.yaml",
    "init": "zero_shot",
    "anchor": "zero_shot",
    "search": "{trials: 16, space: {lr: {log_uniform: [1e-5, 1e-3]}, epochs: 5}}",
    "search.trials": "16",
    "search.sampler": "random",
    "search.space": "{lr: {log_uniform: [1e-5, 1e-3]}, epochs: {integer: [2, 6]}}",
    "search.space.lr": "{log_uniform: [1e-5, 1e-3]}",
    "search.space.epochs": "{integer: [2, 6]}",
    "search.space.batch_size": "32",
    "search.space.weight_decay": "{log_uniform: [1e-4, 0.5]}",
    "search.space.label_smoothing": "{uniform: [0.02, 0.2], off: 0.5}",
    "resources": "{cpu: 1, gpu: 0}",
    "resources.cpu": "1",
    "resources.gpu": "0.5",
    "resources.at_most": "4",
    "keep": "ingredients",
    "keep.best": "8",
    "budget": "{hours: 12, usd: 50, price: {gpu_hour: 2.5, cpu_hour: 0.04}}",
    "budget.gpu_hours": "20",
    "budget.hours": "12",
    "budget.usd": "50",
    "budget.price": "{gpu_hour: 2.5, cpu_hour: 0.04}",
    "storage": "s3://bucket/prefix",
    "tracking": "http://127.0.0.1:5000",
    "trackers": "{wandb: {project: soups}, tensorboard: {folder: tb}}",
    "recipes": "{greedy: {accept: ge}, wise_ft: {}}",
}
"""YAML of the values, by the keys that lead to them."""


def example_of(place: Sequence[int | str]) -> str | None:
    """Return `key: value` as an example of a field, or None.

    Args:
        place: the keys that lead to it.
    """
    value = EXAMPLES.get(".".join(map(str, place)))
    return None if value is None else f"{place[-1]}: {value}"
