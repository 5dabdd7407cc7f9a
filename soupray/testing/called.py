"""What the contracts of plug-ins call the code of their authors."""

from __future__ import annotations


def called(function: object) -> str:
    """Return the name of a function as a spec has it, `module:name`.

    Args:
        function: the code of a plug-in.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{name}"
