"""The command line: `soupray VERB`. Parses, calls one function, prints; exit status 0, 1 or 2."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import click

from soupray import __version__
from soupray.cli import hand_over, look, operate, run, use
from soupray.core.errors import ConfigError, SouprayError

# Imports that take time are made inside the commands: `soupray --help` is instant.


class _Group(click.Group):
    """Turns our errors into one message and a status: 2 for spec and usage, else 1."""

    def invoke(self, ctx: click.Context) -> Any:
        from soupray.core.names import indented

        try:
            return super().invoke(ctx)
        except click.ClickException as error:  # it may quote the name of a file
            vars(error)["message"] = indented(error.message)
            raise
        except (SouprayError, OSError) as error:  # of this machine's disk: the store's are ours
            if ctx.params.get("debug"):
                raise
            click.echo(indented(f"error: {error}"), err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="soupray")
def cli(debug: bool) -> None:
    r"""Hyperparameter sweeps on Ray whose trials become model soups.

    \b
    soupray sweep sweeps/digits.yaml     train the trials; run again to go on
    soupray check sweeps/digits.yaml     which trials would hurt a soup, and why
    soupray soup sweeps/digits.yaml      average them, rank on held-out data
    soupray predict digits@champion IMG  use the best of them
    soupray serve digits@champion        use it over HTTP
    soupray ui                           compare everything in MLflow

    SPEC is a file. Verbs that read one SPEC also know a sweep of this home by its
    name. SPEC may be left out: SOUPRAY_SPEC, else the newest sweep of this home,
    else sweeps/digits.yaml. The Tab key completes verbs, options and SPEC after
    eval "$(_SOUPRAY_COMPLETE=bash_source soupray)"; also zsh_source, fish_source.
    """
    show_log()


def show_log() -> None:
    """Show what the library logs, from INFO on. Calling it again changes nothing.

    Other libraries' warnings are shown as Python shows them without any handler. Some of these
    libraries log through the root logger, which would give it a handler that repeats our lines.
    """
    if not logging.root.handlers:
        others = logging.StreamHandler()
        others.setLevel(logging.WARNING)
        others.addFilter(lambda record: not record.name.startswith("soupray"))
        logging.root.addHandler(others)
    from soupray.reporting.messages import show_messages

    show_messages()


for _verb in (*run.VERBS, *look.VERBS, *use.VERBS, *hand_over.VERBS, *operate.VERBS):
    cli.add_command(_verb)

# Click's mark for lines that stay as they are is this character, which a docstring spells out.
for _verb in (cli, *cli.commands.values(), *operate.cluster.commands.values()):
    _verb.help = (_verb.help or "").replace(r"\b", "\b")


ENDED = (128 + signal.SIGTERM, signal.SIGTERM)
"""Status after SIGTERM: ours, and that of Ray's own handler, which is in place while Ray starts."""


AN_END_S = 60.0
"""Seconds that an orderly end may take. It takes about five, unless a library waits for ever."""


def _end(number: int, frame: FrameType | None) -> None:
    """End in order, as after Ctrl-C: Kubernetes and `ray job stop` send SIGTERM.

    Python's import system takes its lock in a line of its own before `try`. An exception there
    would leave it locked, and every other thread that imports would wait for ever: a moment later
    will do.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # sends SIGALRM
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends the process at once
    at_last = threading.Timer(AN_END_S, os.kill, (os.getpid(), signal.SIGTERM))
    at_last.daemon = True
    at_last.start()
    sys.exit(128 + signal.SIGTERM)


def _end_later(ignored: sys.UnraisableHookArgs) -> None:
    """Try again if `_end` interrupted a callback whose exceptions Python ignores.

    Such are the callbacks of weak references, that run after any import, and `__del__`.
    """
    if getattr(ignored.exc_value, "code", None) in ENDED:
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # sends SIGALRM when the callback is over
    else:
        sys.__unraisablehook__(ignored)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `soupray` and of `python -m soupray.sweep`."""
    if sys.getfilesystemencoding() != "utf-8":  # the C locale: paths and output could only be ASCII
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself
    faulthandler.enable(2)  # a crash in a library's native code shows where it was
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGALRM, _end)
    sys.unraisablehook = _end_later
    try:
        cli(args=arguments, prog_name="soupray")
    except SystemExit as end:
        if end.code not in ENDED:
            raise
        click.echo("terminated. What is stored is kept: the same command goes on.", err=True)
        sys.exit(128 + signal.SIGTERM)
