"""Natural shifts in their real layouts, made small: who is labelled what, and how it is scored."""

import json

import msgspec
import numpy as np
import pytest
import torch
from pictures import encoded, pixels, spec_of, write_folders, write_image
from scipy.special import log_softmax
from shared import demo
from timm.data import ImageNetInfo
from torchvision.datasets import STL10

from soupray.core.candidates import OutputEnsemble, mean_of
from soupray.core.errors import ConfigError
from soupray.core.records import Predictions, Split
from soupray.data.cache import open_data, planned
from soupray.data.decoding import Look, decode
from soupray.data.natural import list_shift
from soupray.maths.metrics import on_classes_of, score
from soupray.soup.run import report
from soupray.spec.class_numbers import imagenet_list
from soupray.spec.data import NaturalShift
from soupray.testing.linear import toy

SYNSETS = ImageNetInfo("imagenet-1k").label_names()
PNG = encoded(pixels(0, (8, 8)), "PNG")
CIFAR = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR += ["dog", "frog", "horse", "ship", "truck"]


def shift(kind: str, root, **more: str):
    classes = more.pop("classes", SYNSETS)
    return list_shift(NaturalShift(kind=kind, root=str(root), **more), classes)


def write_pngs(root, names) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "x.png").write_bytes(PNG)


def labels_by_folder(found) -> dict[str, int]:
    return {i.split("/")[0]: k for i, k in zip(found.ids, found.labels.tolist(), strict=True)}


def test_the_folders_of_imagenet_v2_are_class_numbers(tmp_path):
    write_pngs(tmp_path, map(str, range(1000)))
    samples, label_map = shift("imagenet_v2", tmp_path)
    assert label_map is None
    # Sorted as text, "10" would be class 2, and 996 of 1000 labels wrong.
    assert labels_by_folder(samples) == {str(i): i for i in range(1000)}


def test_the_folders_of_sketch_are_all_synsets_in_the_order_of_imagenet(tmp_path):
    assert imagenet_list("synsets") == SYNSETS
    write_pngs(tmp_path, SYNSETS)
    samples, label_map = shift("imagenet_sketch", tmp_path)
    assert label_map is None
    assert labels_by_folder(samples) == {name: i for i, name in enumerate(SYNSETS)}


# By hand: the goldfish is class 1 and in R only; the robin is class 15 and in A only.
@pytest.mark.parametrize(
    ("kind", "there", "absent"), [("imagenet_r", 1, 15), ("imagenet_a", 15, 1)]
)
def test_r_and_a_are_scored_among_their_200_classes(tmp_path, kind, there, absent):
    names = imagenet_list(f"{kind.removeprefix('imagenet_')}_synsets")
    write_pngs(tmp_path, names)
    samples, label_map = shift(kind, tmp_path)
    assert len(label_map) == len(samples.ids) == 200
    found = {name: label_map[k] for name, k in labels_by_folder(samples).items()}
    assert found == {name: (SYNSETS.index(name),) for name in names}
    assert label_map == tuple(
        (int(i),) for i in imagenet_list(f"{kind.removeprefix('imagenet_')}_indices")
    )
    assert (there,) in label_map
    assert (absent,) not in label_map
    (tmp_path / names[3] / "x.png").unlink()
    (tmp_path / names[3]).rmdir()
    with pytest.raises(ConfigError, match=rf"lacks 1 of the 200 class folders, like '{names[3]}'"):
        shift(kind, tmp_path)


def test_a_shift_of_imagenet_needs_its_1000_classes(tmp_path):
    said = r"a shift of ImageNet's 1000 classes, but the task has no class 'n01440764'"
    with pytest.raises(ConfigError, match=said):
        shift("imagenet_a", tmp_path, classes=CIFAR)
    with pytest.raises(ConfigError, match=r"a shift of CIFAR-10's 10 classes.* has 11 classes"):
        shift("stl10", tmp_path, classes=[*CIFAR, "monkey"])
    with pytest.raises(ConfigError, match=r"data\.shifts: imagenet_v2: there is no folder /gone"):
        shift("imagenet_v2", "/gone")


def write_objectnet(root) -> None:
    """Three of ImageNet's classes as two of ObjectNet's, and a class that ImageNet does not have.

    The lines of ImageNet's labels are in an order of their own, as in the real file.
    """
    for folder, seed in (("alarm_clock", 1), ("banana", 2), ("hairclip", 3)):
        framed = np.zeros((20, 24, 3), np.uint8)
        framed[:] = (255, 0, 0)
        framed[2:-2, 2:-2] = pixels(seed, (16, 20))
        (root / "images" / folder).mkdir(parents=True)
        (root / "images" / folder / "a.png").write_bytes(encoded(framed, "PNG"))
    mappings = root / "mappings"
    mappings.mkdir()
    lines = [f"label {i}" for i in range(1000)]
    lines[7], lines[3], lines[5] = "banana", "digital clock", "analog clock"
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    # The model's 954 is line 7, 530 line 3, 409 line 5.
    place = {954: 7, 7: 954, 530: 3, 3: 530, 409: 5, 5: 409}
    to_line = {str(i): place.get(i, i) for i in range(1000)}
    for name, data in (
        ("pytorch_to_imagenet_2012_id.json", to_line),
        (
            "folder_to_objectnet_label.json",
            {"alarm_clock": "Alarm clock", "banana": "Banana", "hairclip": "Hair clip"},
        ),
        (
            "objectnet_to_imagenet_1k.json",
            {"Alarm clock": "digital clock; analog clock", "Banana": "banana"},
        ),
    ):
        (mappings / name).write_text(json.dumps(data))


def test_objectnet_follows_its_own_mappings_and_loses_its_border(tmp_path):
    write_objectnet(tmp_path)
    samples, label_map = shift("objectnet", tmp_path)
    assert label_map == ((409, 530), (954,))
    assert samples.ids == ["alarm_clock/a.png", "banana/a.png"]
    assert samples.labels.tolist() == [0, 1]
    inner = decode(encoded(pixels(2, (16, 20)), "PNG"), Look(16, 3))
    assert (decode(samples.raw(1), Look(16, 3), samples.border) == inner).all()
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text('{"Banana": "bananna"}')
    with pytest.raises(ConfigError, match="'bananna' is not a class of ImageNet"):
        shift("objectnet", tmp_path)
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(ConfigError, match=r"`root` must be the folder objectnet-1.0"):
        shift("objectnet", tmp_path)


def test_stl10_in_the_order_of_cifar_without_its_monkeys(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pictures = np.stack([pixels(i, (96, 96)) for i in range(10)])
    # The file has columns first: [N, 3, column, row].
    (folder / "test_X.bin").write_bytes(pictures.transpose(0, 3, 2, 1).tobytes())
    (folder / "test_y.bin").write_bytes(bytes(range(1, 11)))
    samples, label_map = shift("stl10", tmp_path, classes=CIFAR)
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    assert samples.ids == [f"test/{i}" for i in range(10) if names[i] != "monkey"]
    meant = [CIFAR[label_map[k][0]] for k in samples.labels.tolist()]
    assert meant == [n.replace("car", "automobile") for n in names if n != "monkey"]
    assert len(label_map) == 9
    assert (6,) not in label_map  # frog
    oracle = STL10.__new__(STL10)
    oracle.root, oracle.base_folder = str(tmp_path), "stl10_binary"
    images, _ = oracle._STL10__loadfile("test_X.bin", "test_y.bin")
    for row, i in enumerate(int(s.split("/")[1]) for s in samples.ids):
        assert (samples.raw(row) == images[i].transpose(1, 2, 0)).all()
        assert (samples.raw(row) == pictures[i]).all()
    (folder / "test_y.bin").write_bytes(bytes(range(1, 10)))
    with pytest.raises(ConfigError, match=r"has 276480 bytes and test_y.bin 9 labels"):
        shift("stl10", tmp_path, classes=CIFAR)


def test_cifar10_1_is_two_arrays(tmp_path):
    pictures = np.stack([pixels(i, (32, 32)) for i in range(4)])
    np.save(tmp_path / "cifar10.1_v6_data.npy", pictures)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([3, 9, 0, 6], np.int32))
    samples, label_map = shift("cifar10_1", tmp_path, classes=CIFAR)
    assert (samples.labels.tolist(), label_map) == ([3, 9, 0, 6], None)
    assert (samples.raw(2) == pictures[2]).all()
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.zeros(5))
    with pytest.raises(ConfigError, match=r"images are uint8 \[4, 32, 32, 3\], with 5 labels"):
        shift("cifar10_1", tmp_path, classes=CIFAR)


def test_a_folder_of_some_classes_is_scored_among_them(tmp_path):
    write_folders(tmp_path, {"dog": 1, "cat": 2})
    samples, label_map = shift("folder", tmp_path, classes=["ant", "cat", "dog"])
    assert label_map == ((1,), (2,))
    assert labels_by_folder(samples) == {"cat": 0, "dog": 1}
    write_folders(tmp_path, {"ant": 1})
    assert shift("folder", tmp_path, classes=["ant", "cat", "dog"]).label_map is None
    with pytest.raises(
        ConfigError, match=r"1 of its 3 classes are not in task.classes[^W]*'ant'\n[^W]*Write a lab"
    ):
        shift("folder", tmp_path, classes=["cat", "dog"])


def test_a_label_map_gives_folders_to_classes(tmp_path):
    write_folders(tmp_path / "x", {"tabby": 1, "lion": 1, "poodle": 1, "other": 1, "both": 1})
    path = tmp_path / "map.yaml"
    path.write_text("dog: [poodle, both]\ncat: [tabby, lion, both]\n")
    samples, label_map = shift(
        "folder", tmp_path / "x", label_map=str(path), classes=["ant", "cat", "dog"]
    )
    meant = {name: label_map[k] for name, k in labels_by_folder(samples).items()}
    assert meant == {"tabby": (1,), "lion": (1,), "poodle": (2,), "both": (1, 2)}
    for text, said in (
        ("wolf: poodle", "'wolf' is not a class of the task. Its classes are ant, cat"),
        ("cat: puma", "has no folder 'puma', which the label map names"),
        ("cat: []", r"cat: \[\] names no folders"),
        ("- cat", "a label map has a line a class"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            shift("folder", tmp_path / "x", label_map=str(path), classes=["ant", "cat", "dog"])


# Scores


def split_with(label_map, name="r") -> Split:
    classes = len(label_map) if label_map else 4
    return Split(name=name, role="shift", digest=name, size=3, classes=classes, label_map=label_map)


LOGITS = np.log(np.array([[1, 2, 4, 3], [5, 1, 2, 3], [1, 6, 2, 4]], np.float32))


def test_a_mapped_split_is_scored_on_its_own_classes():
    # Class 0 of the split is the model's 1, class 1 is 0 or 3; the model's 2 is no answer.
    # By sample, the odds of the two: 2 : max(1, 3), 1 : max(5, 3), 6 : max(1, 4).
    predictions = Predictions(
        split=split_with(((1,), (0, 3))), logits=LOGITS, labels=np.array([1, 1, 1])
    )
    found = score(predictions)
    assert found.right_mask().tolist() == [True, True, False]
    assert found.nll == pytest.approx(-np.mean(np.log([3 / 5, 5 / 6, 4 / 10])))
    assert found.by_class == ((0, 1, 0), (3, 2, 2))
    plain = Predictions(split=split_with(None), logits=LOGITS, labels=np.array([2, 0, 1]))
    assert score(plain).correct == 3


def test_masking_and_maximum_are_those_of_the_field():
    """ObjectNet's own way: the best of the ids that are there, right if it is one of the class."""
    generator = np.random.default_rng(0)
    label_map = ((3, 7), (11,), (2, 19, 5))
    logits = generator.normal(size=(200, 20)).astype(np.float32)
    labels = generator.integers(0, 3, 200)
    there = sorted(i for group in label_map for i in group)
    best = np.array(there)[logits[:, there].argmax(axis=1)]
    wanted = [b in label_map[k] for b, k in zip(best, labels, strict=True)]
    found = score(Predictions(split=split_with(label_map), logits=logits, labels=labels))
    assert found.right_mask().tolist() == wanted


def test_id_accuracy_on_the_classes_of_a_shift():
    test = Split(name="test", role="test", digest="t", size=3, classes=4)
    predictions = Predictions(split=test, logits=LOGITS, labels=np.array([2, 3, 1]))
    shifted = split_with(((1,), (0, 3)))
    found = on_classes_of(predictions, shifted)
    # The sample of class 2 is left out; that of class 3 is answered 0, which means the same there.
    assert found.labels.tolist() == [1, 0]
    assert (found.split.name, found.split.size) == ("test on r", 2)
    assert score(found).correct == 2
    assert on_classes_of(predictions, split_with(None)) is predictions
    assert on_classes_of(predictions, split_with(((0,),))) is None
    log_p = log_softmax([[np.log(1), np.log(5)], [np.log(6), np.log(4)]], axis=1)
    assert score(found).nll == pytest.approx(-(log_p[0, 1] + log_p[1, 0]) / 2)


# In the cache


def test_shifts_made_here_and_natural_ones_side_by_side(tmp_path):
    write_folders(tmp_path / "train", {"ant": 4, "bee": 4, "cat": 4})
    write_folders(tmp_path / "val", {"ant": 1, "bee": 1, "cat": 1}, seed=100)
    write_folders(tmp_path / "drawn", {"cat": 2, "ant": 1}, seed=200)
    write_image(tmp_path / "more" / "insects" / "x.png", 300)
    (tmp_path / "more.yaml").write_text("bee: insects\nant: insects\n")
    spec = spec_of(f"""
        kind: folder
        train: {tmp_path}/train
        test: {tmp_path}/val
        held_out: 3
        size: 16
        shifts: [blurred, {{kind: folder, name: drawn, root: {tmp_path}/drawn}}, {{kind: folder, name: more, root: {tmp_path}/more, label_map: {tmp_path}/more.yaml}}]""")  # noqa: E501
    data = open_data(spec, tmp_path / "cache")
    shown = [(s.name, s.role, s.size, s.classes, s.label_map) for s in data.splits[3:]]
    assert shown == [
        ("blurred", "shift", 3, 3, None),
        ("drawn", "shift", 3, 2, ((0,), (2,))),
        ("more", "shift", 1, 1, ((0, 1),)),
    ]
    assert planned(spec).sizes == [(s.name, s.role, s.size) for s in data.splits]
    images, labels = data.samples(data.split("drawn"))
    assert labels.tolist() == [0, 1, 1]
    with (tmp_path / "drawn" / "cat" / "1.jpg").open("rb") as file:
        assert (images[2] == decode(file.read(), Look(16, 3))).all()
    assert images.shape == (3, 3, 16, 16)
    # Another meaning of the same images is another split.
    (tmp_path / "more.yaml").write_text("bee: insects\n")
    again = open_data(spec, tmp_path / "cache")
    assert again.split("more").digest != data.split("more").digest
    assert again.split("drawn").digest == data.split("drawn").digest


def test_entity_30_is_imagenet_with_a_map_for_its_sources_and_one_for_its_targets(tmp_path):
    write_folders(tmp_path / "train", {"n1": 4, "n2": 4, "n3": 4, "n4": 4, "n5": 1})
    write_folders(tmp_path / "val", {"n1": 1, "n2": 1, "n3": 1, "n4": 1, "n5": 1}, seed=100)
    (tmp_path / "source.yaml").write_text("garment: [n4]\nreptile: [n1]\n")
    (tmp_path / "target.yaml").write_text("garment: [n3]\nreptile: [n2]\n")
    spec = spec_of(
        f"""
        kind: folder
        train: {tmp_path}/train
        test: {tmp_path}/val
        label_map: {tmp_path}/source.yaml
        held_out: 2
        size: 16
        shifts: [{{kind: folder, name: entity, root: {tmp_path}/val, label_map: {tmp_path}/target.yaml}}]""",  # noqa: E501
        None,
    )
    assert spec.task.classes == ("garment", "reptile")
    data = open_data(spec, tmp_path / "cache")
    named = {
        s.name: {
            (i.split("/")[0], label)
            for i, label in zip(data.ids(s), data.samples(s)[1].tolist(), strict=True)
        }
        for s in data.splits
    }
    sources, targets = {("n4", 0), ("n1", 1)}, {("n3", 0), ("n2", 1)}
    assert named == {"train": sources, "held_out": sources, "test": sources, "entity": targets}
    assert data.split("entity").label_map is None


def test_a_label_map_may_use_the_names_of_classes_or_of_their_folders(tmp_path):
    write_folders(tmp_path / "x", {"new": 1})
    path = tmp_path / "map.yaml"
    given = NaturalShift(kind="folder", root=str(tmp_path / "x"), label_map=str(path))
    for name in ("goldfish", "n2"):
        path.write_text(f"{name}: new")
        found = list_shift(given, ["tench", "goldfish"], {"n1": 0, "n2": 1})
        assert found.label_map == ((1,),)


def test_natural_shifts_of_data_that_are_arrays_look_as_those_do(tmp_path):
    write_folders(tmp_path / "x", {"seven": 2, "one": 1})
    natural = f"{{kind: folder, name: x, root: {tmp_path}/x}}, inverted,"
    data = open_data(demo(("shifts: [inverted,", f"shifts: [{natural}")), tmp_path / "cache")
    found = data.split("x")
    assert (found.size, found.label_map) == (3, ((1,), (7,)))
    images, labels = data.samples(found)
    assert (images.shape, labels.tolist()) == ((3, 1, 32, 32), [0, 1, 1])
    raw = (tmp_path / "x" / "seven" / "0.jpg").read_bytes()
    assert (images[1] == decode(raw, Look(32, 1))).all()


@pytest.mark.parametrize(
    ("shifts", "said"),
    [
        ("[blurred, blurred]", "a shift is listed twice"),
        ("[{kind: stl10, root: a}, {kind: stl10, root: b}]", "a shift is listed twice; give one"),
        ("[{kind: folder, name: test, root: a}]", "a shift cannot be called 'test'"),
        ("[{kind: stl10, root: a, label_map: b}]", "the label map of stl10 is known; leave it out"),
        ("[{kind: imagenet_x, root: a}]", "Input should be 'folder', 'imagenet_v2'"),
        ("[{kind: stl10, rot: a}]", "unknown key. Did you mean 'root'?"),
        ("[{kind: stl10}]", "root: required, but not given"),
        ("[{kind: folder, name: A/b, root: a}]", "String should match pattern"),
    ],
)
def test_a_shift_that_cannot_be_is_refused(shifts, said):
    with pytest.raises(ConfigError) as error:
        spec_of(
            f"kind: folder\ntrain: a\ntest: b\nsize: 16\nheld_out: 3\nshifts: {shifts}",
        )
    assert said in str(error.value)


def test_ensembles_are_mixed_over_all_classes_and_then_mapped(tmp_path):
    here = toy(tmp_path, models=3)
    label_map = ((0,), (1, 2), (2,))
    far = msgspec.structs.replace(here.basis.split("far"), label_map=label_map)
    shas = here.pool.checkpoints
    parts = tuple((mean_of([sha]), 1, 1.0) for sha in shas)
    ensemble = OutputEnsemble(parts=parts, denominator=3, space="probabilities")
    images, labels = here.data.samples(far)
    x = here.task.inputs(torch.from_numpy(np.array(images))).flatten(1).double()
    each = [x @ here.checkpoints.load(sha)["head.weight"].double().T for sha in shas]
    mean_p = torch.stack([m.softmax(dim=1) for m in each]).mean(dim=0)
    mixed = {mean_of(shas): sum(each) / 3, ensemble: mean_p}
    for candidate, outputs in mixed.items():
        answers = torch.stack([outputs[:, list(g)].amax(dim=1) for g in label_map], 1).argmax(1)
        found = here.evaluator.scores([candidate], far)[0]
        assert found.right_mask().tolist() == (answers.numpy() == labels).tolist()
        # All logits are kept.
        assert here.evaluator.predictions(candidate, far).logits.shape == (70, 3)
    basis = msgspec.structs.replace(here.basis, splits=(*here.basis.splits[:3], far))
    reported = report(here.evaluator, list(mixed), basis)
    for candidate in mixed:
        test = here.evaluator.predictions(candidate, here.basis.split("test"))
        assert reported[candidate, "test on far"] == score(on_classes_of(test, far))
        assert reported[candidate, "test on far"].correct != reported[candidate, "test"].correct
