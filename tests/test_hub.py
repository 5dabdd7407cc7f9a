"""Models of the hub where there is no network: one sentence that says what to do."""

import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from soupray.core.errors import ConfigError
from soupray.spec.task import OpenClipSpec, TimmSpec, TransformersSpec
from soupray.tasks import task_of
from soupray.tasks.files import not_reached

GREY = (0.5, 0.5, 0.5)
MODELS = {
    "open_clip": OpenClipSpec(
        kind="open_clip",
        model="ViTamin-S",  # the smallest that open_clip has a tag for
        pretrained="datacomp1b",
        classes=("a", "b"),
        templates=("a {}",),
    ),
    "timm": TimmSpec(
        kind="timm",
        model="resnet10t",
        pretrained="c3_in1k",
        classes=("a", "b"),
        size=32,
        mean=GREY,
        std=GREY,
    ),
    "transformers": TransformersSpec(
        kind="transformers", model="nobody/minilm", classes=("a", "b")
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_not_here_and_may_not_be_asked_for(kind, tmp_path, monkeypatch):
    # The library read its environment when it was imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(ConfigError) as error:
        task_of(MODELS[kind]).init()
    said = str(error.value)
    assert said.startswith(f"task.model = {MODELS[kind].model!r}")
    assert f"it is not in {tmp_path} (HF_HOME), and huggingface.co is not used with" in said
    assert "Name a local file in task.pret" in said or "Name a folder, or package:" in said
    assert said.endswith("or set HF_ENDPOINT to a mirror that this machine reaches.")


def test_a_hub_that_does_not_answer_is_named_without_what_its_address_hides(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@mirror.local:9/x")
    said = not_reached(wrapped(ConnectionRefusedError(111, "Connection refused")), "a file")
    assert "and mirror.local:9 was not reached ([Errno 111] Connection refused). Name a" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("hub", "transformers", "offline"),
    [("0", "", False), ("", "", False), ("yes", "", True), ("", "True", True), ("0", "1", False)],
)
def test_offline_is_what_huggingface_hub_takes_for_it(hub, transformers, offline, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", hub)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", transformers)
    said = not_reached(wrapped(ConnectionRefusedError(111, "refused")), "a file")
    assert ("is not used with HF_HUB_OFFLINE" in said) is offline
    assert ("was not reached" in said) is not offline


def wrapped(cause: Exception) -> Exception:
    """As open_clip raises it: huggingface_hub's error two times over."""
    try:
        try:
            missing = huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
            raise missing from cause
        except FileNotFoundError as error:
            raise RuntimeError(f"Failed to download weights: {error}")  # noqa: B904 - as it does
    except RuntimeError as error:
        return error


def test_other_errors_have_nothing_to_do_with_the_hub():
    assert not_reached(RuntimeError("size mismatch"), "a file") is None
