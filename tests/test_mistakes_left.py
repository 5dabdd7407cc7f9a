"""Which mistakes remain, by hand: files of annotations, multi-label accuracy, what was mended."""

import json

import numpy as np
import pytest
from conftest import inside
from shared import Given, board, demo, ingredient, scores, sha

from soupray.core.candidates import mean_of
from soupray.core.errors import ConfigError
from soupray.core.records import Basis, CheckpointRef, Predictions, Split
from soupray.core.trials import Pool
from soupray.data.thumbnails import SIDE, thumbnail
from soupray.diagnostics.annotations import (
    Annotations,
    Assessed,
    Said,
    read_annotations,
    rows_of,
)
from soupray.diagnostics.diagnose import members_of
from soupray.diagnostics.measure import CannotMeasure, Inputs, NoSamples, Options, Picture
from soupray.diagnostics.mistakes import MISTAKES, measure_mistakes
from soupray.diagnostics.samples import DecodedSamples
from soupray.maths.annotations import COLLAPSED, Judged, judge, multi_label_accuracy
from soupray.spec.sweep_spec import parse

# ---- the numbers


def test_what_an_answer_is_by_hand():
    judged = [
        Judged(frozenset({0})),
        Judged(frozenset({0, 1})),
        Judged(frozenset({0}), frozenset({1})),
        Judged(frozenset({0})),
        Judged(frozenset({0}), problematic=True),
        None,
        None,
        Judged(frozenset({1})),  # the label itself is not right
    ]
    answers, labels = np.array([0, 1, 1, 2, 0, 0, 1, 0]), np.zeros(8, int)
    kinds = judge(answers, labels, judged, {})
    assert kinds == [
        "right", "other label", "unclear", "wrong", "skipped", "right", "wrong", "wrong",
    ]  # fmt: skip
    known = np.array([j is not None for j in judged])
    found = multi_label_accuracy(kinds, labels, known)
    assert (found.n, found.classes) == (5, 1)
    assert found.value == pytest.approx(3 / 5)


def test_multi_label_accuracy_is_a_mean_over_classes():
    """Class 0: 1 of 3 right; class 1: 1 of 1. The mean over classes is 2/3, over samples 1/2."""
    labels, kinds = np.array([0, 0, 0, 1]), ["right", "wrong", "wrong", "unclear"]
    assert multi_label_accuracy(kinds, labels, np.ones(4, bool)).value == pytest.approx(2 / 3)
    assert multi_label_accuracy(kinds, labels, np.zeros(4, bool)) == (None, 0, 0)


def test_a_kind_of_a_class_is_right_as_that_class_too_and_not_the_reverse():
    """A malamute (249) is a husky (248); a husky need not be a malamute. Maillots are twins."""
    judged = [Judged(frozenset({c})) for c in (249, 248, 638, 639, 357)]
    answers, labels = np.array([248, 249, 639, 638, 359]), np.array([249, 248, 638, 639, 357])
    assert judge(answers, labels, judged, COLLAPSED) == [
        "other label", "wrong", "other label", "other label", "other label",
    ]  # fmt: skip
    unclear = [Judged(frozenset({0}), frozenset({504}))] * 2  # a coffee mug; 968 is a cup
    kinds = judge(np.array([968, 504]), np.array([0, 0]), unclear, COLLAPSED)
    assert kinds == ["unclear", "unclear"]


# ---- files


def published(folder) -> tuple[dict, str]:
    """A file in the layout of human_accuracy_v3.0.0.json, with its 68 names of ImageNet-M."""
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 101)]
    data = {
        "initial_annots": {
            name: {"correct": ["n01440764"], "wrong": ["n01443537"], "unclear": ["n01484850"]}
            for name in names
        },
        "problematic_images": {names[0]: "no", names[5]: "no"},
        "imagenet_m": names[20:88],
        "wnid_map": {},
    }
    path = folder / "human_accuracy_v3.0.0.json"
    path.write_text(json.dumps(data))
    return data, path


def test_the_published_layout_is_read(tmp_path):
    data, path = published(tmp_path)
    found = read_annotations([path])
    assert len(found.slices["imagenet_m"]) == 68
    assert len(found.samples) == 100
    assert sum(said.problematic for said in found.samples.values()) == 2
    assert found.samples[data["imagenet_m"][0]] == Said(
        right=("n01440764",), unclear=("n01484850",)
    )
    ids = [f"n01440764/{name}" for name in data["initial_annots"]]  # class folders
    rows, missing = rows_of(found.slices["imagenet_m"], ids)
    assert sorted(rows.values()) == list(range(20, 88))
    assert missing == []


def test_a_table_of_ones_own_is_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "id,ok_labels,unclear_labels,problematic\na/1.png,one|seven,two,no\n\nb,,,yes\n"
    )
    assert read_annotations([path]).samples == {
        "a/1.png": Said(right=("one", "seven"), unclear=("two",)),
        "b": Said(right=(), problematic=True),
    }


HEADER = "id,ok_labels,unclear_labels,problematic\n"


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "id,labels\n", "the first line is 'id,labels'; it must be id,ok_labels,unclear"),
        ("a.csv", "", "the first line is ''"),
        ("a.csv", f"{HEADER}a,one\n", "a.csv:2: 2 cells; there are 4"),
        ("a.csv", f"{HEADER}a,one,,no\na,two,,no\n", "a.csv:3: 'a' is there twice"),
        ("a.csv", f"{HEADER}a,one,,maybe\n", "a.csv:2: problematic is 'maybe'; write yes or no"),
        ("a.csv", f"{HEADER}a,,,no\n", "'a' has no right and no unclear class"),
        ("a.csv", "id,answer,category,severity\na,one,,minor\n", "a.csv:2: 'a,one,,minor'; each"),
        (
            "a.json",
            '{"a": {"failure severity": "Minor", "top_prediction": 1000}}',
            "is 1000; it is",
        ),
        ("a.csv", f"{HEADER}a,{'x' * 200_000},,no\n", "not CSV: field larger than field limit"),
        ("a.csv", f'{HEADER}"a,one,,no\n', "not CSV: unexpected end of data"),
        ("a.csv", f"{HEADER},one,,no\n", "a.csv:2: the id is empty"),
        ("a.csv", HEADER, "there is no row below its first line"),
        ("a.json", '{"initial_annots": {"a": {}, "a": {}}}', "'a' is there twice in one mapping"),
        ("a.json", "[" * 100_000, "not JSON: maximum recursion depth"),
        ("a.json", "[", "not JSON"),
        ("a.json", "[]", "neither a mapping `initial_annots`"),
        ("a.json", '{"initial_annots": {"a": 3}}', r"initial_annots\['a'\] is no mapping"),
        ("a.json", '{"initial_annots": {"a": {"correct": [1]}}}', "correct is no list of names"),
        ("a.json", '{"initial_annots": {}, "imagenet_m": 3}', "imagenet_m is no list of names"),
        ("a.txt", "", "in a .json or a .csv file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_annotations([tmp_path / name])


def test_assessed_mistakes_are_read_in_both_layouts(tmp_path):
    published = tmp_path / "vit3b_mistakes.json"
    said = {"failure category": "Non-prototypical", "failure severity": "Borderline"}
    published.write_text(json.dumps({"val_1.JPEG": {"top_prediction": 1, **said}}))
    own = tmp_path / "own.csv"
    own.write_text("id,answer,category,severity\nval_2,seven,fine-grained,Major\n")
    found = read_annotations([published, own])
    assert found is not None
    assert found.mistakes == {
        "val_1.JPEG": (
            Assessed(answer="n01443537", category="Non-prototypical", severity="minor"),
        ),  # class 1 of ImageNet is the goldfish
        "val_2": (Assessed(answer="seven", category="fine-grained", severity="major"),),
    }
    other = tmp_path / "other.csv"
    other.write_text("id,answer,category,severity\nval_2,seven,fine-grained,minor\n")
    with pytest.raises(ConfigError, match=r"other.csv: the answer seven to 'val_2' is minor \("):
        read_annotations([own, other])


def test_names_are_ids_or_the_files_of_ids_where_only_one_has_it():
    ids = ["x/a.png", "y/a.png", "y/b.png", "test/7"]
    rows, missing = rows_of(["x/a.png", "a.png", "b", "z/b.png", "7", "8"], ids)
    assert rows == {"x/a.png": 0, "b": 2, "z/b.png": 2, "7": 3}
    assert missing == ["a.png", "8"]


# ---- the measure


TEST = Split(name="test", role="test", digest=sha("test"), size=6, classes=10)
HELD_OUT = Split(name="held_out", role="held_out", digest=sha("held_out"), size=10, classes=10)
LABELS = [0, 0, 1, 1, 2, 2]
IDS = [f"test/{k}" for k in range(6)]
REF = CheckpointRef(sha256=sha("anchor"), size_bytes=1)
BASIS = Basis(key="b", splits=(HELD_OUT, TEST), init=REF, anchor=REF)
A, B = (ingredient(name, scores(n, 10)) for name, n in (("a", 9), ("b", 8)))
POOL = Pool(init=REF, anchor=REF, ingredients=(A, B))
SINGLE, OTHER, SOUP = mean_of([sha("a")]), mean_of([sha("b")]), mean_of([sha("a"), sha("b")])


def saying(answers: list[int]) -> Predictions:
    """Each answer has three times the weight of each of the nine others together: p = 1/4."""
    logits = np.zeros((6, 10), np.float32)
    logits[np.arange(6), answers] = np.log(3.0)
    return Predictions(split=TEST, logits=logits, labels=np.array(LABELS))


class Pictures:
    """Samples without images."""

    def ids(self, split: Split) -> list[str]:
        assert split == TEST
        return IDS

    def pictures(self, split: Split, rows) -> list[Picture]:
        return [Picture(text=f"sample {row}") for row in rows]


def seen(annotations: Annotations | None = None, slices=None, champion="uniform", **more) -> Inputs:
    answers = {
        SINGLE: saying([0, 0, 0, 1, 2, 3]),  # 4 of 6
        SOUP: saying([0, 1, 1, 1, 2, 2]),  # 5 of 6: mends 2 and 5, breaks 1
        OTHER: saying([0, 0, 1, 1, 3, 3]),
    }
    models = more | {"uniform": SOUP, "best_single": SINGLE}
    return Inputs(
        spec=demo(),
        pool=POOL,
        basis=BASIS,
        board=board(champion, **models),
        answers=Given({(model, "test"): said for model, said in answers.items()}),
        options=Options(annotations=annotations),
        samples=Pictures(),
        slices=slices or {},
    )


def test_what_was_mended_and_broken_by_hand():
    made = measure_mistakes(seen())
    assert made.models == ("uniform", "best_single")
    assert (made.fixed, made.broken, made.both) == (2, 1, 0)
    # Sample 5 is right in no trial, sample 2 in one of two: the harder one comes first.
    assert [(c.id, c.trials) for c in made.fixed_cases] == [("test/5", 0.0), ("test/2", 0.5)]
    five = made.fixed_cases[0]
    assert (five.label, five.before[0], five.after[0]) == ("two", "three", "two")
    assert five.after[1] == pytest.approx(3 / 12)
    assert five.picture.text == "sample 5"
    assert [(c.id, c.before[0], c.after[0]) for c in made.broken_cases] == [
        ("test/1", "zero", "one")
    ]
    assert {e.name: e.right for e in made.entries} == {"uniform": 5, "best_single": 4}
    assert (made.source, made.entries[0].multi_label) == (None, None)
    section = MISTAKES.section(made)
    assert "gets 2 right that best_single gets wrong, and 1 wrong" in section.sentences[0]
    assert [g.title for g in section.galleries] == [
        "Right in uniform, wrong in best_single: 2, the hardest first",
        "Wrong in uniform, right in best_single: 1, the hardest first",
    ]


def test_annotations_and_slices_by_hand():
    """Sample 1 may be a one, too; of sample 2 nobody is sure; sample 5 does not count."""
    said = Annotations(
        source="mine.csv",
        samples={
            "test/0": Said(right=("zero",)),
            "test/1": Said(right=("zero", "One")),
            "test/2": Said(right=("one",), unclear=("zero",)),
            "test/5": Said(right=(), problematic=True),
            "other": Said(right=("one",)),
        },
        slices={"hard": ("test/1", "test/2")},
        mistakes={},
    )
    made = measure_mistakes(seen(said, {"late": ("test/2", "test/4", "5")}))
    assert (made.judged, made.counted, made.classes, made.of_classes) == (4, 3, 2, 10)
    assert made.unmatched == (("other",), 1)
    assert made.slices == {"hard": 2, "late": 3}
    assert made.overlaps == (("hard", "late", 1),)
    soup, single = made.entries
    assert soup.kinds == {
        "right": 4, "other label": 1, "unclear": 0, "wrong": 0, "skipped": 1,
    }  # fmt: skip
    assert single.kinds["unclear"] == 1
    assert soup.multi_label == single.multi_label == 1
    assert soup.slices == {"hard": 0, "late": 0}
    assert single.slices == {"hard": 0, "late": 1}  # a problematic sample has its label
    sentences = " ".join(MISTAKES.section(made).sentences)
    assert "judges 4 of the 6 samples; 3 of these are not problematic, in 2 of 10" in sentences
    assert "8 classes have no judged sample" in sentences
    assert "1 names in mine.csv are no sample of ID test, the first: other." in sentences
    assert "hard and late share 1 samples" in sentences


def test_the_severity_of_two_models_mistakes_by_hand():
    """best_single says one to sample 2 and three to sample 5; uniform says one to sample 1."""
    said = {
        "test/1": (Assessed(answer="one", category="fine-grained", severity="minor"),),
        "test/2": (
            Assessed(answer="zero", category="spurious", severity="major"),
            Assessed(answer="nine", category="spurious", severity="minor"),  # nobody says it
        ),
    }
    made = measure_mistakes(seen(Annotations(source="m", samples={}, slices={}, mistakes=said)))
    assert [(s.severity, s.category, s.mistakes) for s in made.severities] == [
        ("major", "spurious", (1, 0)),
        ("minor", "fine-grained", (0, 1)),
        ("not assessed", "", (1, 0)),
    ]
    assert made.source is None  # nobody said which answers are right
    table = MISTAKES.section(made).tables[1]
    assert table.rows[-1] == ("all", "-", "2", "1")
    strange = {"test/1": (Assessed(answer="dog", category="c", severity="minor"),)}
    with pytest.raises(CannotMeasure, match="answers of 1 classes that the task has not, the first "
                       "are dog"):  # fmt: skip
        measure_mistakes(seen(Annotations(source="m", samples={}, slices={}, mistakes=strange)))


def test_a_mistake_that_two_names_assess_differently_is_refused():
    said = {
        name: (Assessed(answer="one", category="c", severity=how),)
        for name, how in (("test/1", "minor"), ("1.png", "major"))
    }
    both = Annotations(source="m", samples={}, slices={}, mistakes=said)
    says = r"m assesses the answer one to test/1 twice: minor, and major under '1.png'"
    with pytest.raises(CannotMeasure, match=says):
        measure_mistakes(seen(both))


def test_a_slice_in_two_files_is_refused(tmp_path):
    for one in "ab":
        text = f'{{"initial_annots": {{"{one}": {{"correct": ["x"]}}}}, "imagenet_m": ["{one}"]}}'
        (tmp_path / f"{one}.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json and b\.json: the slice imagenet_m is in two"):
        read_annotations([tmp_path / "a.json", tmp_path / "b.json"])


@pytest.mark.parametrize(
    ("annotations", "slices", "match"),
    [
        (
            Annotations(
                source="x.csv", samples={"q": Said(right=("one",))}, slices={}, mistakes={}
            ),
            None,
            r"none of the 1 names in x.csv is a sample .* first are q, ids here are test/0, test/1",
        ),
        (
            Annotations(
                source="x.csv", samples={"test/1": Said(right=("dog",))}, slices={}, mistakes={}
            ),
            None,
            "x.csv names 1 classes that the task has not, the first are dog",
        ),
        (
            Annotations(
                source="x.csv",
                samples={"test/1": Said(right=("one",)), "1.png": Said(right=("two",))},
                slices={},
                mistakes={},
            ),
            None,
            "x.csv has 'test/1' and '1.png', which are the same sample of ID test",
        ),
        (None, {"s": ("test/1", "no")}, "slice s: 1 of 2 names are no sample .* first are no;"),
    ],
)
def test_names_that_mean_nothing_are_named(annotations, slices, match):
    with pytest.raises(CannotMeasure, match=match):
        measure_mistakes(seen(annotations, slices))


def test_a_champion_that_is_the_best_single_model_is_left_for_the_next_entry():
    alike = {"twin": mean_of([sha("a"), sha("a2")])}  # another model, which answers alike
    given = seen(champion="best_single", **alike)
    given.answers.known[alike["twin"], "test"] = given.answers.known[SINGLE, "test"]
    made = measure_mistakes(given)
    assert made.models == ("uniform", "best_single")
    alone = seen(champion="best_single")
    only = board("best_single", best_single=SINGLE)
    with pytest.raises(CannotMeasure, match="all entries give the same answers"):
        measure_mistakes(
            Inputs(
                spec=alone.spec, pool=POOL, basis=BASIS, board=only, answers=alone.answers,
                samples=Pictures(),
            )
        )  # fmt: skip
    with pytest.raises(CannotMeasure, match="samples of test are not here"):
        NoSamples().ids(TEST)


# ---- pictures


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 8, 8), (96, 96)),
        ((3, 224, 112), (48, 96)),
        ((4, 60, 60), (60, 60)),
        ((2, 1, 300), (96, 1)),
    ],
)
def test_a_thumbnail_has_whole_pixels_or_is_smaller(shape, size):
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    url = thumbnail(pixels)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    made = Image.open(io.BytesIO(base64.b64decode(data)))
    assert made.size == size
    assert max(made.size) <= SIDE
    assert made.mode == ("RGB" if shape[0] > 2 else "L")
    if shape[1] == 8:
        assert (np.asarray(made)[::12, ::12] == pixels[0]).all()


# ---- at the command line


def test_slices_are_no_part_of_a_sweep_and_may_be_in_a_file(tmp_path):
    plain = demo()
    text = plain.model_dump_json()
    listed = parse(text[:-1] + ', "slices": {"hard": ["digits/1"]}}', "x")
    assert listed.slices == {"hard": ("digits/1",)}
    assert listed.digest == plain.digest


def test_a_slice_is_a_list_or_the_lines_of_a_file(tmp_path):
    file = tmp_path / "some.txt"
    with pytest.raises(ConfigError, match=r"slices\.hard: .*some\.txt: cannot be read"):
        members_of("hard", str(file))
    file.write_text("test/1\n\n  test/2\n")
    assert members_of("hard", str(file)) == members_of("hard", ("test/1", "test/2"))


def test_the_report_shows_what_was_mended(fresh):
    board_ = json.loads((fresh.output / "leaderboard.json").read_text())
    spec = fresh.spec.read_text()
    ids = fresh.folder / "some.txt"
    fresh.spec.write_text(f"{spec}\nslices: {{some: {ids}}}\n")
    from soupray.data.cache import open_data
    from soupray.services.place import find_place
    from soupray.spec.sweep_spec import load

    loaded = load(fresh.spec)
    data = open_data(loaded, find_place(loaded, fresh.home).folder / "data")
    names = data.ids(data.split("test"))
    ids.write_text("\n".join(names[:40]))
    out = fresh.folder / "diagnosis"
    asked = ("diagnose", fresh.spec, *fresh.where, "--only", "mistakes", "--output", out)
    said = json.loads(inside(*asked, "--json").stdout)["measures"]["mistakes"]
    right = {e["name"]: e["right"] for e in said["entries"]}
    assert {e["name"]: e["test"]["correct"] for e in board_ if e["name"] in right} == right
    assert said["slices"] == {"some": 40}
    shown = said["fixed_cases"] + said["broken_cases"]
    assert len(shown) == said["fixed"] + said["broken"]
    page = (out / "report.html").read_text()
    assert all(case["picture"]["image"] in page for case in shown)


def test_samples_of_other_data_are_not_shown(tmp_path):
    """The data of this machine are not those of the sweep: no id and no picture is theirs."""
    shown = DecodedSamples(demo(), tmp_path / "data")
    with pytest.raises(CannotMeasure, match="split test: the data here have digest"):
        shown.ids(TEST)
    with pytest.raises(CannotMeasure, match="split test: the data here have digest"):
        shown.pictures(TEST, [0])
