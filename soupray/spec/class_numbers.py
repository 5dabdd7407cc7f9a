"""The class of the task for each class that data or a checkpoint name: by name, never by position.

A name means the class that has it. Failing that, case, spaces, `_` and `-` are ignored. Names of
ImageNet's classes may also be synset ids (n01440764) or WordNet's lemmas ("tench, Tinca tinca").
Names that are all numbers are the numbers of the classes, from 0, in the order of the spec.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from soupray.core.errors import ConfigError
from soupray.spec.class_names import is_imagenet

SHOWN = 10
"""Number of classes that a message lists."""


def class_numbers(
    named: Sequence[str],
    classes: Sequence[str],
    source: str,
    advice: str,
    complete: bool = True,
) -> list[int]:
    """Return the number of the task's class for each of `named`.

    Args:
        named: names of classes in a source, each once.
        classes: names of the task's classes, in the order of their numbers.
        source: names the source in messages.
        advice: what the user can do about names that differ.
        complete: every class of the task must be among `named`.

    Raises:
        ConfigError: a name means no class, two names mean the same class, or a class is missing.
            The message has both lists side by side.
    """
    known = numbers_by_name(classes)
    found = [number_of(name, known) for name in named]
    if found and set(found) == {None}:
        found = list(_counted(named, len(classes))) or found
    if problem := _side_by_side(named, found, classes, complete):
        raise ConfigError(f"{source}: {problem}{advice}")
    return [number for number in found if number is not None]


def numbers_by_name(classes: Sequence[str]) -> dict[str, int]:
    """Return the number of each class by the names that mean it, as the module says.

    A name that would mean two classes is left out.

    Args:
        classes: names of the classes, in the order of their numbers.
    """
    known = dict[str, int]()
    folded = [_folded(name) for name in classes]
    aliases = [(name, k) for k, name in enumerate(folded)]
    if is_imagenet(classes):
        synsets, lemmas = imagenet_list("synsets"), imagenet_lemmas()
        aliases += [(synset, k) for k, synset in enumerate(synsets)]
        aliases += [(_folded(lemmas[synset]), k) for k, synset in enumerate(synsets)]
    count = Counter(alias for alias, _ in set(aliases))
    known |= {alias: k for alias, k in aliases if count[alias] == 1}
    times = Counter(classes)
    return known | {name: k for k, name in enumerate(classes) if times[name] == 1}


def number_of(name: str, known: Mapping[str, int]) -> int | None:
    """Return the number of the class that `name` means; None if it means none.

    Args:
        name: a name in data.
        known: the result of `numbers_by_name`.
    """
    return known.get(name, known.get(_folded(name)))


def _folded(name: str) -> str:
    """`name` without case; spaces, `_` and `-` are one space. Composed, as macOS does not write."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())).strip()


def _counted(named: Sequence[str], classes: int) -> Iterable[int]:
    """The names as numbers if all of them are numbers of classes, each once; else nothing."""
    numbers = [int(n) for n in named if re.fullmatch(r"[0-9]{1,9}", n)]
    fit = len(set(numbers)) == len(named) and all(n < classes for n in numbers)
    return numbers if fit else []


def imagenet_list(kind: str) -> list[str]:
    """Return the synset ids of ImageNet-1k, or of a part of it, in order, from timm's lists.

    Args:
        kind: `synsets`, or `r_synsets` and `a_synsets` for the 200 classes of ImageNet-R and -A.
    """
    return (_timm_lists() / f"imagenet_{kind}.txt").read_text().split()


def imagenet_lemmas() -> dict[str, str]:
    """Return WordNet's lemmas of each synset id, as timm lists them."""
    lines = (_timm_lists() / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    return dict(line.split("\t", 1) for line in lines)


def _timm_lists() -> Path:
    """The folder of timm's lists, found without an import of timm, which takes seconds."""
    found = importlib.util.find_spec("timm")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "data" / "_info"


def _side_by_side(
    named: Sequence[str], found: Sequence[int | None], classes: Sequence[str], complete: bool
) -> str:
    """What does not match, and the names of both lists that do not; empty if all match."""
    numbers = [number for number in found if number is not None]
    unknown = [name for name, number in zip(named, found, strict=True) if number is None]
    missing = sorted(set(range(len(classes))) - set(numbers)) if complete else []
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} of its {len(named)} classes are not in task.classes")
    if missing:
        problems.append(f"it lacks {len(missing)} of the task's {len(classes)} classes")
    for number in (k for k, count in Counter(numbers).items() if count > 1):
        same = [name for name, k in zip(named, found, strict=True) if k == number]
        problems.append(f"{' and '.join(map(repr, same))} both mean {classes[number]!r}")
    said = "; ".join(problems)
    if not unknown and not missing:
        return f"{said}. " if said else ""
    left = [classes[k] for k in missing] if missing else list(classes)
    rows = [f"  {'in task.classes':<30}  in the data", *_columns(left, unknown)]
    return "\n".join([f"{said}.", *rows, ""])


def _columns(left: Sequence[str], right: Sequence[str]) -> list[str]:
    pairs = list(itertools.zip_longest(map(repr, left), map(repr, right), fillvalue=""))
    rows = [f"  {one:<30}  {other}".rstrip() for one, other in pairs[:SHOWN]]
    return rows + ([f"  ... {len(pairs) - SHOWN} more"] if len(pairs) > SHOWN else [])
