"""Specs that a person or a program gets wrong: one line each, and no number that is another one."""

import os

import pytest
from conftest import ROOT, inside

from soupray.core.errors import ConfigError
from soupray.spec.class_names import read_label_map
from soupray.spec.sweep_spec import load, parse
from soupray.spec.yaml import parse_yaml, read_documents

TEXT = (ROOT / "sweeps" / "digits.yaml").read_text()


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, "x.yaml")
    said = str(error.value)
    assert said.startswith("x.yaml: ")
    lines = said.split("\n")
    assert len(lines) == 1 or lines[0].endswith(" mistakes:")
    assert len(lines) <= 22
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    said.encode()
    return said


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-11-29", "2026-11-29"),
        ("2026-11-29 10:00:00", "2026-11-29 10:00:00"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("", None),
        ("5e-5", 5e-5),
        ("1e9", 1e9),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0", 0),
        ("-7", -7),
        ("0x1F", 31),
        ("'0010'", "0010"),
        ('"1_000"', "1_000"),
        ("00.5", 0.5),
        (".inf", float("inf")),
        ("1.2.3", "1.2.3"),
        ("n01440764", "n01440764"),
    ],
)
def test_a_plain_value_is_what_yaml_1_2_says(text, value):
    assert parse_yaml(f"a: {text}", "x") == {"a": value}
    assert type(parse_yaml(f"a: {text}", "x")["a"]) is type(value)


@pytest.mark.parametrize("text", ["0010", "-07", "010e5", "1_000", "1_0.5", "0b101", "0o17", "08"])
def test_a_number_that_is_two_numbers_is_refused_with_its_line(text):
    said = f": {text} is one number in YAML 1.1 and another one"
    for place, column in ((f"b: 1\na: {text}", 4), (f"b: 1\n{text}: a", 1), (f"- b\n- {text}", 3)):
        with pytest.raises(ConfigError) as error:
            parse_yaml(place, "x")
        assert str(error.value).startswith(f"x: not YAML: line 2, column {column}{said}")


def test_a_key_that_is_there_twice_is_refused_with_both_lines():
    said = refused(TEXT.replace("\nseed: 0", "\nseed: 1\nseed: 0"))
    first = TEXT.splitlines().index(next(x for x in TEXT.splitlines() if x.startswith("seed")))
    assert (
        f"line {first + 2}, column 1: the key 'seed' is already in line {first + 1}; remove one"
        in said
    )


@pytest.mark.parametrize("text", ["a: {b: 1, c: 2, b: 3}", "1: a\n'1': b", "true: a\nTrue: b"])
def test_equal_keys_are_refused_however_they_are_written(text):
    with pytest.raises(ConfigError, match="is already in line"):
        parse_yaml(text, "x")


def test_a_merge_may_be_overridden():
    assert parse_yaml("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3", "x")["d"] == {"b": 3, "c": 2}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases stand for more than 1000000 values"),
        (MERGES, "aliases stand for more than 1000000 values"),
        ("a: &a [*a]", "an alias stands for something that contains it"),
        ("&a a: {b: *a, c: &c {d: *c}}", "an alias stands for something that contains it"),
        ("[" * 60 + "]" * 60, "more than 50 levels"),
        ("[" * 100_000, "more than 50 levels"),
        ("{a: " * 100_000, "more than 50 levels"),
        ("- " * 100_000, "more than 50 levels"),
        (f"seed: {'9' * 5000}", "a whole number of 5000 digits; allowed are 100"),
        (f"{'9' * 900}: 1", "a whole number of 900 digits"),
        ("? [a]\n: 1", "a key is a list or a mapping; write a text"),
        ("? {a: 1}\n: 1", "a key is a list or a mapping; write a text"),
        ('a: "\\ud800"', "half of a surrogate pair is no character"),
        ('"\\ud800": 1', "half of a surrogate pair is no character"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: !!timestamp 2001-01-01", "could not determine a constructor"),
        ("a: !!set {b, c}", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!int x", "invalid literal for int"),
        ("a: !!float x", "could not convert"),
        ("a: !!bool x", "not YAML"),
        ("a: !!map [b]", "not YAML"),
        ("a: !!str [b]", "not YAML"),
        ("a: !!null [b]", "not YAML"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "2 documents, divided by ---; write one"),
        ("a: 1\x00", "not YAML"),
        ("\t- a", "not YAML"),
        ("%YAML 3.0\n---\na: 1", "not YAML"),
    ],
)
def test_what_no_spec_has_is_refused_in_one_line(text, said):
    assert said in refused(text)


def test_values_of_a_file_that_is_no_mapping():
    assert "a spec is a mapping, not list" in refused("[1]")
    assert "a spec is a mapping, not NoneType" in refused("")


def test_files_of_kubernetes_keep_their_octal_numbers(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("mode: 0644\n---\n---\na: 1\n")
    assert read_documents(path) == [{"mode": 420}, {"a": 1}]
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match="line 3, column 1: the key 'a' is already in line 1"):
        read_documents(path)


def test_a_label_map_has_no_number_that_is_another_one(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("cat: [2024-11-29, 1:30, 12, n01]\n")
    assert read_label_map(str(path)) == {"cat": ("2024-11-29", "1:30", "12", "n01")}
    path.write_text("cat: [0010]\n")
    with pytest.raises(ConfigError, match=r"0010 is one number in YAML 1\.1"):
        read_label_map(str(path))


@pytest.mark.parametrize("named", ["~nosuchuser/x", "a\0b", "/dev/zero", "/dev", "\ud800"])
def test_a_path_that_is_none_is_refused_where_a_spec_names_a_file(named, tmp_path):
    with pytest.raises(ConfigError) as error:
        read_label_map(named)
    assert "\n" not in str(error.value)
    if named.startswith("~"):
        assert "'~nosuchuser/x' does not name a user of this machine" in str(error.value)


def test_a_spec_that_is_a_pipe_or_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot be read: not a regular file"):
        load(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path / "y.yaml")
    with (tmp_path / "z.yaml").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ConfigError, match="1000000000 bytes, more than 67108864"):
        load(tmp_path / "z.yaml")


# Values


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials: 16", "trials: 1000000000", "search.trials: 1000000000 is not allowed"),
        ("trials: 16", "trials: 1e9", "search.trials: 1000000000.0 is not allowed"),
        ("trials: 16", "trials: 100001", "less than or equal to 100000"),
        ("cpu: 1", "cpu: 1e-9", "resources.cpu: 1e-09 is not allowed"),
        ("cpu: 1", "cpu: 1e-9", "greater than or equal to 0.0001"),
        ("cpu: 1", "cpu: .inf", "resources.cpu: "),
        ("cpu: 1", "cpu: .nan", "resources.cpu: "),
        ("gpu: 0", "gpu: 1e-9", "Ray divides a GPU into shares of 0.0001 and more"),
        ("gpu: 0", "gpu: .nan", "resources.gpu: "),
        ("seed: 0\n", f"seed: {2**64}\n", "less than 9223372036854775808"),
        ("seed: 0\n", f"seed: {2**63}\n", "less than 9223372036854775808"),
        ("seed: 0\n", f"seed: {10**90}\n", "seed: 1000000000"),
        ("threads: 1", "threads: 1000000", "less than or equal to 1024"),
        ("kind: open_clip", "kind: open_clip\n  scale: 1e300", "less than or equal to 1000"),
        ("name: digits\n", 'name: "small\\n"\n', "1 to 63 lower-case letters"),
        ("name: digits\n", f"name: {'a' * 64}\n", "1 to 63 lower-case letters"),
        ("name: digits\n", 'name: "\\x1b[31m"\n', "1 to 63 lower-case letters"),
        ("storage: embedded", 'storage: "embedded\\n"', "write embedded, s3://bucket/prefix"),
        (
            "storage: embedded",
            "storage: 's3://[::1'",
            "'s3://[::1' is not allowed: no URL: ",
        ),
        ("storage: embedded", "storage: 's3://b/p#1'", "what follows # in a URL is no part of a"),
        ("storage: embedded", "storage: 's3://b/p?x'", "what follows ? in a URL is no part of a"),
        ("storage: embedded", "storage: 'file:///a#1'", "what follows # in a URL"),
        ("storage: embedded", "storage: 's3://b/p q'", "a space, or a character that cannot be"),
        ("storage: embedded", 'storage: "s3://b/p\\x1b"', "a space, or a character that cannot"),
        ("storage: embedded", "storage: 's3:///p'", "names no bucket and no host"),
        ("storage: embedded", "storage: 's3://b:99999/p'", "no URL: Port out of range"),
        ("storage: embedded", "storage: 's3://b:80/p'", "a bucket cannot be called 'b:80'"),
        ("storage: embedded", "storage: 's3://b*/p'", "a bucket cannot be called 'b*'"),
        ("tracking: embedded", "tracking: 'http://[::1'", "tracking: 'http://[::1' is not allowed"),
        ("tracking: embedded", "tracking: 'http://a:99999'", "no URL: Port out of range"),
        ("tracking: embedded", "tracking: 'http://:80'", "names no bucket and no host"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {uniform: [.nan, 1]}", "search.space.lr"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: {log_uniform: [1e-3, .inf]}", "search"),
        ("lr: {log_uniform: [5e-5, 2e-3]}", "lr: .nan", "search.space.lr"),
        ("epochs: {integer: [5, 15]}", "epochs: 2026-11-29", "'2026-11-29' is not allowed"),
        ("seed: 0\n", "seed: 1:30\n", "seed: '1:30' is not allowed"),
        ("seed: 0\n", "seed: 2026-11-29\n", "seed: '2026-11-29' is not allowed"),
        ("seed: 0\n", "seed: 0\n2026-11-29: 1\n", "2026-11-29: unknown key"),
        ("kind: open_clip", 'kind: "\\n"', "found using 'kind' does not match any of the expected"),
        ("kind: open_clip", "kind: [a]", "task"),
        ("kind: open_clip", "kind: {a: 1}", "task"),
        ("kind: digits", "kind: [a]", "data"),
        ("seed: 0\n", 'seed: 0\n"\\n": 1\n', "(top level): unknown key"),
        ("seed: 0\n", 'seed: 0\n"a\\x1b[31m": 1\n', r"a\x1b[31m: unknown key"),
        ("accept: ge", "accept: [" + "a, " * 500 + "a]", "recipes.0: 'a' is not allowed"),
    ],
)
def test_a_value_that_would_crash_the_run_is_refused_with_the_allowed_range(old, new, said):
    assert old in TEXT
    assert said in refused(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 0\n", f"seed: {2**63 - 1}\n"),
        ("trials: 16", "trials: 100000"),
        ("cpu: 1", "cpu: 0.0001"),
        ("storage: embedded", "storage: s3://My_bucket.x-1/a/b%20c/d=1"),
        ("storage: embedded", "storage: 'file:///tmp/a b/%20'"),
        ("tracking: embedded", "tracking: 'sqlite:////tmp/a.db?timeout=3'"),
        ("tracking: embedded", "tracking: 'http://[::1]:5000'"),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(old, new):
    assert old in TEXT
    parse(TEXT.replace(old, new), "x.yaml")


def test_the_plan_of_many_trials_is_shown_to_its_first_two_hundred(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.replace("trials: 16", "trials: 5000"))
    done = inside("sweep", path, "--dry-run")
    assert "... 4,800 more trials: --json has them all" in done.stdout
    assert done.stdout.count("\n") < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 10_001),
        ("train_size", 10**18),
        ("max_pixels", 2**31),
        ("size", 0),
        ("max_pixels", 0),
    ],
)
def test_a_side_that_no_memory_holds_is_refused(field, value):
    data = f"data: {{kind: folder, train: a, test: 1, held_out: 1, size: 16, {field}: {value}}}"
    data = data.replace("size: 16, size", "size")
    text = f"name: x\ntask: {{kind: timm, model: m, classes: [a, b], size: 16}}\n{data}\n"
    assert f"data.{field}: {value} is not allowed" in refused(text)
