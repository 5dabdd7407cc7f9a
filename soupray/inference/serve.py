"""Serve the model of a leaderboard entry over HTTP: on this machine, or as a RayService."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec

from soupray.core.errors import ConfigError, one_line
from soupray.core.records import Record
from soupray.distributed.serving import LOOPBACK, Wanted, refuse_taken, serving
from soupray.distributed.serving import application as on_ray_serve
from soupray.services.home import home_at

if TYPE_CHECKING:
    from soupray.inference.service import Service
    from soupray.inference.what import Found

# What imports torch is imported inside the functions: checking a cluster file needs none of it.

APPLICATION = "soupray.inference.serve:application"
"""The `import_path` of a serve config."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Arguments(Record, frozen=True, kw_only=True):
    """What is served, and on what: also the `args` of a serve config of Ray.

    Attributes:
        what: as in `soupray.load`.
        home: folder with the embedded store, if the sweep used it.
        batch_size: samples in a forward pass; None for that of the evaluation.
        calibrated: as in `soupray.load`.
        replicas: processes with a model each.
        cpus: CPUs of each replica, which are also its threads. None for a share of this machine; in
            a serve config for 1.
        gpus: GPUs of each replica; a part of one is shared with others. None for one if this
            machine has one; in a serve config for none.
    """

    what: str
    home: str | None = None
    batch_size: Count | None = None
    calibrated: bool = False
    replicas: Count = 1
    cpus: Count | None = None
    gpus: Share | None = None


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


def service(given: Arguments, device: str, found: Found | None = None) -> Service:
    """Load a model and return what a server answers about it. Errors are those of `soupray.load`.

    Args:
        given: names the model.
        device: `cpu` or `cuda`.
        found: what `given.what` named before; None to find it now.
    """
    from soupray.inference.load import load_found
    from soupray.inference.service import Service
    from soupray.inference.what import find

    home = home_of(given)
    model = load_found(found or find(given.what, home), home, device, given.batch_size)
    return Service(model.calibrated() if given.calibrated else model)


def home_of(given: Arguments) -> Path:
    """Return the home that is named, or the default home."""
    return home_at(given.home)


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
    make = functools.partial(service, given, "cuda" if given.gpus else "cpu")
    return on_ray_serve(make, Wanted(given.replicas, given.gpus or 0, given.cpus))


@contextlib.contextmanager
def served(given: Arguments, port: int) -> Iterator[Server]:
    """Serve a model on this machine, for programs of this machine, until the end of the context.

    Args:
        given: what is served.
        port: TCP port.

    Yields:
        The server.

    Raises:
        SouprayError: as `soupray.load`.
        ConfigError: the port is taken, there is no GPU, or the replicas do not fit.
        EvaluationError: a replica does not start.
    """
    from soupray.inference.load import found_device
    from soupray.inference.what import find

    refuse_taken(port)
    there, gpus = found_device(None), given.gpus
    if gpus and there == "cpu":
        raise ConfigError(
            f"--gpus {gpus:g}: torch sees no GPU here. Leave --gpus out, or install a torch with "
            "CUDA."
        )
    if gpus is None:
        gpus = 1 if there == "cuda" else 0
    # SWEEP@champion is another model after the next soup: a replica that replaces a lost one loads
    # what was found here. It is loaded here too, and dropped: errors come before Ray starts.
    found = find(given.what, home_of(given))
    tried = service(given, "cpu", found)
    url = f"http://{LOOPBACK}:{port}"
    model, example = tried.model.summary().splitlines()[0], tried.example(url)
    del tried
    make = functools.partial(service, given, "cuda" if gpus else "cpu", found)
    with serving(make, Wanted(given.replicas, gpus, given.cpus), port) as wait:
        yield Server(url, model, example, wait)
