"""Find code that a spec names outside soupray, and say which code it is.

There are two ways in. An installed package declares an entry point: then its name is enough. Or a
spec names `package.module:name`, found in the current folder, which `ray job submit --working-dir`
ships, or among the installed packages.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from soupray.core.errors import ConfigError

MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""`package.module:name`."""

DECLARED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
"""What an entry point may be: `package.module:name`, or a name inside of it."""


METRICS = "soupray.metrics"
"""Entry points of metrics: the one group that code below the specs reads."""


class Plugin(NamedTuple):
    """Code that was found.

    Attributes:
        value: the object.
        origin: the distribution with its version, or the file; for people.
        digest: SHA-256 (hex) of the Python files of its package, and of the distribution's version.
            Edited code is other code: keys of what it makes contain it.
    """

    value: Any
    origin: str
    digest: str


def is_plugin(named: str, group: str) -> bool:
    """Whether a name may be that of a plug-in: of an entry point, or `module:name`.

    Args:
        named: as a spec has it.
        group: of entry points, such as `soupray.recipes`.
    """
    return re.fullmatch(MODULE, named) is not None or named in installed(group)


@functools.cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name. Nothing is imported.

    Of a name that two packages declare, the first one is here; who names it is told of both.

    Args:
        group: such as `soupray.recipes`.
    """
    return {name: points[0] for name, points in _declared(group).items()}


@functools.cache
def _declared(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def forget() -> None:
    """Forget what was found: another package may be installed, or code may be edited."""
    for found in (installed, _declared, load):
        found.cache_clear()


def _point(group: str, named: str) -> EntryPoint | None:
    """The entry point of a name; None for `module:name`, and for a name that is not declared.

    Raises:
        ConfigError: two packages declare it, or what it declares is no `module:name`.
    """
    if re.fullmatch(MODULE, named):
        return None
    points = _declared(group).get(named, [])
    if len(points) > 1:
        both = " and ".join(described(point) for point in points)
        raise ConfigError(
            f"{group}: {both} both declare {named!r}. Uninstall one of them, or name the code as "
            f"{points[0].value}."
        )
    if points and not re.fullmatch(DECLARED, points[0].value):
        raise ConfigError(
            f"{group}: {described(points[0])} declares {named!r} as {points[0].value!r}. An entry "
            "point is package.module:name: correct it in the package, and install it again."
        )
    return points[0] if points else None


@functools.cache
def load(group: str, named: str) -> Plugin:
    """Import a plug-in.

    Args:
        group: of entry points, such as `soupray.recipes`.
        named: the name of an entry point, or `module:name`.

    Raises:
        ConfigError: there is no such module or name, or the import raises.
    """
    module, name, package, where = _parts(group, named)
    found = _imported(module, where)
    file = getattr(found, "__file__", None) or module  # a folder without __init__.py has no file
    value = found
    for part in name.split("."):
        value = getattr(value, part, None)
    if value is None:
        near = difflib.get_close_matches(name, dir(found), n=1)
        hint = f" Did you mean {module}:{near[0]}?" if near else ""
        raise ConfigError(f"{where}: {file} has no {name!r}.{hint}")
    return Plugin(value, package or str(file), digest_of(group, named))


def digest_of(group: str, named: str) -> str:
    """Return the digest of the code of a plug-in, which is not imported; see `Plugin.digest`.

    Args:
        group: of entry points, such as `soupray.recipes`.
        named: the name of an entry point, or `module:name`.

    Raises:
        ConfigError: there is no such module.
    """
    _, _, package, _ = _parts(group, named)
    seen = hashlib.sha256(package.encode())
    for file in code_files(group, named):
        seen.update(hashlib.sha256(file.read_bytes()).digest())
    return seen.hexdigest()


def _parts(group: str, named: str) -> tuple[str, str, str, str]:
    """Module, name in it, package with its version or an empty text, and a name for messages."""
    point = _point(group, named)
    module, _, name = (point.value if point else named).partition(":")
    package = described(point) if point else ""
    return module, name, package, f"{group} {named!r}{f' of {package}' if package else ''}"


def code_files(group: str, named: str) -> list[Path]:
    """Return the Python files of a plug-in: of its whole package, or the one file.

    Args:
        group: of entry points, such as `soupray.recipes`.
        named: the name of an entry point, or `module:name`.

    Raises:
        ConfigError: there is no such module.
    """
    module, _, _, where = _parts(group, named)
    _see_this_folder()
    name = module.partition(".")[0]
    importlib.invalidate_caches()  # a file may be newer than Python's list of its folder
    try:
        top = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        top = None
    if top is None:
        raise _away(name, where)
    if top.submodule_search_locations is not None:
        # A folder that is on Python's path twice is one.
        parts = {Path(part).resolve() for part in top.submodule_search_locations}
        return sorted({file for part in parts for file in part.rglob("*.py")})
    return [Path(top.origin)] if top.has_location and top.origin else []  # one inside Python


def code_place(group: str, named: str) -> str:
    """Return where the code of a plug-in is, as `module:name`.

    Args:
        group: of entry points, such as `soupray.recipes`.
        named: the name of an entry point, or `module:name`.
    """
    module, name, _, _ = _parts(group, named)
    return f"{module}:{name}"


def package_of(group: str, named: str) -> str | None:
    """Return the name of the distribution that declares a plug-in; None for `module:name`.

    Args:
        group: of entry points, such as `soupray.recipes`.
        named: the name of an entry point, or `module:name`.
    """
    point = _point(group, named)
    return point.dist.name if point and point.dist else None


def described(point: EntryPoint) -> str:
    """Return the package of an entry point with its version.

    Args:
        point: the entry point.
    """
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _see_this_folder() -> None:
    """Have Python find modules in the current folder, as `python -m` does."""
    here = str(Path.cwd())  # that of a Ray job is its working folder
    if here not in sys.path:
        sys.path.append(here)


def _away(module: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: there is no module {module!r}, neither in {Path.cwd()} nor installed. "
        "Run the command where the module is, or install its package."
    )


def _imported(module: str, where: str) -> Any:
    _see_this_folder()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise _away(error.name, where) from error
        raise ConfigError(
            f"{where}: its import needs {error.name!r}, which is not there."
        ) from error
    except (Exception, SystemExit) as error:  # a script may end with sys.exit()
        raise ConfigError(f"{where}: its import raised {raised(error)}.") from error


def refuse_signature(
    function: Any,
    where: str,
    takes: Sequence[str],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuse what cannot be called with these arguments, before anything is trained.

    Args:
        function: the code of a plug-in. Code without a signature, such as of C, is called later.
        where: names the plug-in in messages.
        takes: names of what it gets by position.
        options: what it gets by name.

    Raises:
        ConfigError: it cannot be called, or has other parameters.
    """
    asked = ", ".join([*takes, *(f"{name}=..." for name in options)])
    if not callable(function):
        raise ConfigError(
            f"{where} is {type(function).__name__}, which cannot be called. Name a function of "
            f"({asked})."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*takes, **options)
    except TypeError as error:
        raise ConfigError(
            f"{where} does not take ({asked}): {error}. Its parameters are {signature}."
        ) from error


def raised(error: BaseException) -> str:
    """Return what code raised and where, in a line: type, message, file and line.

    Args:
        error: the exception.
    """
    said = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    last = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" ({last[0].filename}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {said}{at}"
