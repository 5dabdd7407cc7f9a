"""Serve the model of a leaderboard entry over HTTP: on this machine, or as a RayService."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from soupray.core.errors import ConfigError, one_line
from soupray.core.records import Record, encode
from soupray.distributed.serving import LOOPBACK, Wanted, refuse_taken, serving
from soupray.distributed.serving import application as on_ray_serve

if TYPE_CHECKING:
    from soupray.inference.model import Model
    from soupray.inference.service import Service

# What imports torch is imported inside the functions: checking a cluster file needs none of it.

APPLICATION = "soupray.inference.serve:application"
"""The `import_path` of a serve config."""


Count = Annotated[int, msgspec.Meta(ge=1)]


class Arguments(Record, frozen=True, kw_only=True):
    """What a serve config of Ray may say under `args`, as in cluster/kuberay-serve.yaml.

    Attributes:
        what: as in `soupray.load`.
        home: folder with the embedded store, if the sweep used it.
        batch_size: samples in a forward pass; None for that of the evaluation.
        replicas: processes with a model each.
        cpus: CPUs of each replica, which are also its threads.
        gpus: GPUs of each replica; a part of one is shared with others.
    """

    what: str
    home: str | None = None
    batch_size: Count | None = None
    replicas: Count = 1
    cpus: Count = 1
    gpus: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0


class Server(NamedTuple):
    """A server that runs.

    Attributes:
        url: where it listens.
        model: its model in one line.
        example: a command that asks it.
        wait: returns when Ray ends; says when replicas are lost, and back.
    """

    url: str
    model: str
    example: str
    wait: Callable[[], None]


def service(what: str, home: str | None, batch_size: int | None, device: str) -> Service:
    """Load a model and return what a server answers about it; arguments as in `soupray.load`."""
    from soupray.inference.load import load
    from soupray.inference.service import Service

    return Service(load(what, home=home, device=device, batch_size=batch_size))


def arguments(given: dict[str, Any]) -> Arguments:
    """Return the arguments of `application`.

    Args:
        given: from YAML, or texts from a command line.

    Raises:
        ConfigError: an argument is unknown, missing or wrong.
    """
    try:
        return msgspec.convert(given, Arguments, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Arguments.__struct_fields__)
        raise ConfigError(f"args: {one_line(error)}; there are: {known}.") from error


def application(args: dict[str, str]) -> Any:
    """Build the application of Ray Serve; the `import_path` of a serve config names it.

    Args:
        args: the fields of `Arguments`.

    Raises:
        ConfigError: an argument is unknown, missing or wrong.
    """
    given = arguments(args)
    device = "cuda" if given.gpus else "cpu"
    make = functools.partial(service, given.what, given.home, given.batch_size, device)
    return on_ray_serve(make, Wanted(given.replicas, given.gpus, given.cpus))


@contextlib.contextmanager
def served(
    what: str,
    home: Path,
    *,
    port: int,
    replicas: int = 1,
    gpus: float | None = None,
    batch_size: int | None = None,
) -> Iterator[Server]:
    """Serve a model on this machine, for programs of this machine, until the end of the context.

    Args:
        what: as in `soupray.load`.
        home: folder with the embedded store, if the sweep used it.
        port: TCP port.
        replicas: processes with a model each.
        gpus: GPUs of each replica; None for one if there is one.
        batch_size: samples in a forward pass; None for that of the evaluation.

    Yields:
        The server.

    Raises:
        SouprayError: as `soupray.load`.
        ConfigError: the port is taken, there is no GPU, or the replicas do not fit.
        EvaluationError: a replica does not start.
    """
    from soupray.inference.load import found_device

    refuse_taken(port)
    there = found_device(None)
    if gpus and there == "cpu":
        raise ConfigError(
            f"--gpus {gpus:g}: torch sees no GPU here. Leave --gpus out, or install a torch with "
            "CUDA."
        )
    if gpus is None:
        gpus = 1 if there == "cuda" else 0
    device = "cuda" if gpus else "cpu"
    # Loaded here once, and dropped: what is wrong is said before Ray starts.
    tried = service(what, str(home), batch_size, "cpu")
    url = f"http://{LOOPBACK}:{port}"
    model, example = tried.model.summary().splitlines()[0], tried.example(url)
    with tempfile.TemporaryDirectory(prefix="soupray-serve-") as folder:
        pinned = _pinned(what, tried.model, Path(folder))
        del tried
        make = functools.partial(service, pinned, str(home), batch_size, device)
        with serving(make, Wanted(replicas, gpus), port) as wait:
            yield Server(url, model, example, wait)


def _pinned(what: str, model: Model, folder: Path) -> str:
    """Return a name of the model that is the same model later, when a lost replica is replaced.

    SWEEP@champion is another model after the next soup, and an entry may be too.
    """
    if Path(what).exists():
        return str(Path(what).resolve())
    path = folder / "model.recipe.json"
    path.write_bytes(encode(model.recipe))
    return str(path)
