"""`ccm chat`: a conversation that is remembered turn by turn, at a terminal or from a script."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from context_memory.talk import Talk

HISTORY = Path("~/.cache/context-memory/chat_history")
REMEMBERED = 1000
"""Lines of the history file."""


def chat(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. model.name=smollm2-135m-instruct generation.temperature=0.7")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter folder; the same as model.adapter=.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A YAML file of settings, and the adapter that ccm train made of it.")] = None,
    open_: Annotated[Path | None, typer.Option("--open", help="Go on with the conversation that /save wrote to this file.")] = None,
    history: Annotated[Path, typer.Option(help="Where the lines that were typed at a terminal are kept for the next time.")] = HISTORY,
) -> None:
    """Talk to a model that compresses every turn into its memory. /help lists the commands; text piped in is answered a line at a time.

    Without an adapter and a scheme it is the plain model, which compresses nothing and keeps the whole conversation (scheme=full).
    """
    from rich.console import Console

    from context_memory import rows
    from context_memory.console import terminal
    from context_memory.memory_file import must_be_there
    from context_memory.output import Settings
    from context_memory.session import Session
    from context_memory.talk import Talk

    if open_ is not None:
        must_be_there(open_.expanduser())  # before the model is loaded, which takes a while
    given = list(overrides or [])
    found = adapter or rows.trained(given, recipe)
    adapted = found or recipe or any(o.startswith("model.adapter=") for o in given)
    chosen = adapted or any(o.startswith("scheme=") for o in given)
    usual = ([] if chosen else ["scheme=full"]) + ([] if adapted else ["boundary=turn"])
    config = rows.configure([*usual, *given], recipe, found)
    lm, g = rows.load_row(config), config.generation
    session = Session(lm, config.encoder(lm.tokenizer), settings=Settings(g.max_new_tokens, g.temperature, g.top_p, g.seed))
    talk = Talk(session, terminal(), Console(stderr=True))
    forgets = "what the scheme does not keep of a turn is forgotten" if lm.scheme.hides else "nothing is compressed; that takes --adapter"
    what = "every turn is compressed" if lm.scheme.n_comp else forgets
    talk.say(f"{config.model.name}, {lm.scheme.title}: {what}. /help lists the commands, Ctrl-D leaves.")
    if open_ is not None:
        talk.open(str(open_))
    with _remembered(history) if sys.stdin.isatty() else _piped():
        _loop(talk)


def _loop(talk: Talk) -> None:
    """Lines until there are no more. An interrupt at the prompt throws away the line that is being typed."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            if not talk.line(input(prompt)):
                return
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            print()
            talk.say("Ctrl-D leaves.")


@contextmanager
def _piped() -> Iterator[None]:
    """A byte that is no UTF-8 spoils a letter and not the conversation."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    yield


@contextmanager
def _remembered(file: Path) -> Iterator[None]:
    """Lines can be edited and come back with the arrow keys, those of the last time too."""
    from context_memory.errors import UserError

    if importlib.util.find_spec("readline") is None:  # Windows: the terminal edits lines itself
        yield
        return
    import readline

    file = file.expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        readline.read_history_file(file)
    except OSError as e:
        raise UserError(f"the history file '{file}' cannot be used ({e}); name another one with --history FILE.") from e
    readline.set_history_length(REMEMBERED)
    try:
        yield
    finally:
        readline.write_history_file(file)
