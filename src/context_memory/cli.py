"""`ccm`: assembles the commands that are found in `commands/`. What a person got wrong ends in one message and exit code 2."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Sequence
from errno import EACCES, EDQUOT, EEXIST, EFBIG, EISDIR, ELOOP, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS
from importlib import metadata
from typing import Annotated

import typer
from safetensors import SafetensorError

from context_memory import commands
from context_memory.errors import UserError

MENDABLE = [os.strerror(n) for n in (EACCES, EDQUOT, EEXIST, EFBIG, EISDIR, ELOOP, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS)]
"""What is wrong with a folder or a disk, and not with the code."""
NOBODY = "Could not determine home directory"
"""What `Path.expanduser` says of a user that is not there."""


def assemble() -> typer.Typer:
    """The Typer app with every command."""
    app = typer.Typer(
        name="ccm",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name in sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if not m.name.startswith("_")):
        module = importlib.import_module(f"context_memory.commands.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name, None) or getattr(module, f"{name}_"))
    app.callback()(_top)
    return app


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Which version of what is installed.", is_eager=True, callback=lambda asked: asked and _versions()),
    ] = False,
) -> None:
    """Compressed memory for language models."""


def _versions() -> None:
    """What a report of a fault should say."""
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("context-memory", "torch", "transformers", "peft")))
    raise typer.Exit


def main(arguments: Sequence[str] | Callable[[], Sequence[str]] | None = None) -> None:
    """Entry point of `ccm`. `arguments` may be a function, so that its errors are reported as those of a command."""
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # transformers 5.23 about itself
    try:
        given = arguments() if callable(arguments) else arguments
        assemble()(args=None if given is None else list(given), prog_name="ccm")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # while a command is being imported; within one, Typer's
        sys.exit(130)
    except (OSError, SafetensorError) as e:
        if not any(fault in str(e) for fault in MENDABLE):
            raise
        print(f"error: {e}; free some space, or name another place.", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as e:
        if NOBODY not in str(e):
            raise
        print(
            f"error: {e} A name that begins with ~ is a user's folder, and there is no such user; write ./~name for a file.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
