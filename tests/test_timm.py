"""The timm task: features and head, states without counters, inputs by hand."""

import pytest
import timm
import torch
from idx_files import tiny

from soupray.core.errors import ConfigError
from soupray.spec.task import TimmSpec
from soupray.store.weights_file import write_weights
from soupray.tasks import local_digests, task_of

SPEC = tiny("/nowhere").task
IMAGES = torch.randint(0, 256, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()


def spec_with(**fields) -> TimmSpec:
    return TimmSpec.model_validate(SPEC.model_dump() | fields)


def task(**fields):
    return task_of(spec_with(**fields))


def test_the_forward_pass_is_the_head_of_the_features():
    model = task().model().eval()
    inputs = task().inputs(IMAGES)
    features = model.features(inputs)
    assert features.shape == (3, 8)  # as wide as the last of `channels`
    assert torch.equal(model(inputs), features @ model.head.weight.T + model.head.bias)
    # timm's own forward pass with the same weights, head included
    whole = timm.create_model(SPEC.model, num_classes=10, **SPEC.args)
    state = {k.removeprefix("body."): v for k, v in model.state_dict().items()}
    state = {k.replace("head.", "fc."): v for k, v in state.items()}
    missing = whole.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert torch.allclose(whole.eval()(inputs), model(inputs), atol=1e-6)


def test_the_state_has_batch_statistics_but_no_counter_and_loads_again():
    state = task().init()
    assert "body.bn1.running_mean" in state
    assert all(tensor.is_floating_point() for tensor in state.values())
    model = task().model()
    model.load_state_dict(dict(state))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"body\.bn1\.running_var"):
        model.load_state_dict({k: v for k, v in state.items() if k != "body.bn1.running_var"})


def test_training_moves_the_batch_statistics_by_a_tenth():
    model = task().model().train()
    before = model.body.bn1.running_mean.clone()
    seen = []
    model.body.bn1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(task().inputs(IMAGES))
    expected = 0.9 * before + 0.1 * seen[0].mean(dim=(0, 2, 3))
    assert torch.allclose(model.body.bn1.running_mean, expected, atol=1e-6)


def test_drawn_weights_depend_on_torchs_generator_alone():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(task().init())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_inputs_by_hand():
    white = task().inputs(torch.full((1, 1, 28, 28), 255, dtype=torch.uint8))
    assert white.shape == (1, 1, 28, 28)
    assert torch.allclose(white, torch.tensor((1 - 0.286) / 0.353))
    colour = task(args={"in_chans": 3}, mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 0.1), size=32)
    inputs = colour.inputs(torch.full((2, 1, 16, 16), 51, dtype=torch.uint8))  # 51 = .2 of 255
    assert inputs.shape == (2, 3, 32, 32)
    assert torch.allclose(inputs[1, :, 5, 7], torch.tensor([0.2, -0.6, 0.0]), atol=1e-6)


def test_pretrained_weights_from_a_file_keep_the_body_and_get_a_new_head(tmp_path):
    path = tmp_path / "weights.safetensors"
    other = timm.create_model(SPEC.model, num_classes=5, **SPEC.args)
    write_weights(path, other.state_dict(), {})
    assert local_digests(SPEC) == []
    spec = spec_with(pretrained=str(path))
    (digest,) = local_digests(spec)
    assert len(digest) == 64
    state = task_of(spec).init()
    for name, tensor in other.state_dict().items():
        if "num_batches" not in name and not name.startswith("fc."):
            assert torch.equal(state[f"body.{name}"], tensor), name
    assert state["head.weight"].shape == (10, 8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "resnet10x"}, "task.model = 'resnet10x'"),
        ({"model": "resnet10x"}, "timm cannot make it: RuntimeError: Unknown model"),
        ({"args": {"in_chans": 1, "width": 3}}, "unexpected keyword argument 'width'"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_with_what_was_asked(fields, said):
    with pytest.raises(ConfigError) as error:
        task(**fields)
    assert said in str(error.value)
