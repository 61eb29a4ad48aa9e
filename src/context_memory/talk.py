"""What is typed in a chat, line by line: something to answer, or a command that begins with a slash.

Answers and tables go to one console, everything that is said about them to another, so that a script reads answers alone. What a
person got wrong is said, and the conversation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from context_memory.errors import UserError
from context_memory.session import Session, Turn

HELP = {
    "memory": "what the memory came to, turn by turn",
    "save FILE": "write memory and conversation to a file",
    "open FILE": "go on with the conversation in a file",
    "full": "answer the last question again with the full context, beside the answer from the memory",
    "forget": "start anew",
    "help": "these lines",
    "quit": "leave (Ctrl-D as well); Ctrl-C stops an answer",
}


class Talk:
    """A conversation at a terminal or in a script.

    Args:
        out: where answers and tables go.
        notes: where the rest goes.
    """

    def __init__(self, session: Session, out: Console, notes: Console) -> None:
        self.session, self.out, self.notes = session, out, notes

    def line(self, text: str) -> bool:
        """Do what a line says; false once it says to leave."""
        text = text.strip()
        try:
            if text.startswith("/") and not text.startswith("//"):
                return self._command(text)
            if text:
                self._answer(text.removeprefix("/"))
        except (UserError, OSError) as e:
            self.say(f"error: {e}", "red")
        return True

    def say(self, text: str, style: str = "dim") -> None:
        """One line beside the answers."""
        self.notes.print(escape(text), style=style, highlight=False, soft_wrap=True)

    def _command(self, text: str) -> bool:
        name, _, argument = text[1:].partition(" ")
        argument = argument.strip()
        if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "\"'":
            argument = argument[1:-1].strip()  # a name with blanks may stand in quotation marks; with nothing in them it is none
        known: dict[str, Callable[[str], None]] = {
            "memory": self._memory, "save": self._save, "open": self.open, "full": self._full, "forget": self._forget, "help": self._help,
        }  # fmt: skip
        wants = {command.split()[0]: len(command.split()) > 1 for command in HELP}
        if name not in wants:
            have = ", ".join(f"/{command}" for command in HELP)
            raise UserError(f"no command '/{name}'; have: {have}. A message that begins with a slash is written with two: //{name}.")
        if bool(argument) != wants[name]:
            what = "the name of a file" if wants[name] else f"nothing behind it, got '{argument}'"
            raise UserError(f"/{name} takes {what}" + (f", as in: /{name} jin.ccm" if wants[name] else "."))
        if name == "quit":
            return False
        known[name](argument)
        return True

    def _answer(self, text: str) -> None:
        session, before = self.session, len(self.session.turns)
        try:
            with closing(session.say(text)) as pieces:
                self._stream(pieces)
        except KeyboardInterrupt:
            session.settle()
            told = "what was shown is remembered" if len(session.turns) > before else "nothing was said, so the turn is not remembered"
            self.say(f"[stopped: {told}]")
        if len(session.turns) > before:
            self.say(cost(session.turns[-1]))

    def _stream(self, pieces: Iterator[str]) -> None:
        try:
            for piece in pieces:
                self.out.file.write(piece)
                self.out.file.flush()
        finally:
            self.out.file.write("\n")
            self.out.file.flush()

    def _memory(self, _: str) -> None:
        turns, memory = self.session.turns, self.session.memory
        table = Table("turn", "user", "answer", "tokens", "entries", "MB", "ratio", "most held", box=None, header_style="dim")
        for i, turn in enumerate(turns, 1):
            figures = (f"{turn.tokens:,}", f"{turn.entries:,}", f"{turn.nbytes / 1e6:.2f}", f"{turn.ratio:.1f}x", f"{turn.peak:,}")
            table.add_row(str(i), escape(short(turn.user)), escape(short(turn.answer)), *figures)
        if turns:
            self.out.print(table)
        whole = memory.raw[0] * self.session.lm.kv_bytes
        self.say(
            f"{self.session.lm.scheme.title}: {memory.raw[0]:,} tokens so far are {memory.tokens:,} entries a layer, "
            f"{memory.nbytes() / 1e6:.2f} MB; uncompressed they would be {whole / 1e6:.2f} MB"
        )

    def _save(self, path: str) -> None:
        file = named(path)
        self.session.save(file)
        self.say(f"saved {len(self.session.turns)} turns to {file} ({file.stat().st_size / 1e6:.2f} MB)")

    def open(self, path: str) -> None:
        """Go on with what a file holds, and show how it ended."""
        self.session.open(named(path))
        for turn in self.session.turns[-1:]:
            self.say(f"> {turn.user}\n{turn.answer}")
            self.say(cost(turn))
        self.say(f"opened {path}: {len(self.session.turns)} turns")

    def _full(self, _: str) -> None:
        (pieces, output), said = self.session.full(), ""
        turn = self.session.turns[-1]
        try:
            with self.notes.status("answering with the full context"), closing(pieces):
                for piece in pieces:
                    said += piece
        except KeyboardInterrupt:
            self.say("[stopped]")
        table = Table(title=escape(f"> {turn.user}"), title_justify="left", expand=True)
        for name in ("from the memory", "with the full context"):
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(escape(turn.answer), escape(said))
        table.add_section()
        table.add_row(f"at most {turn.peak:,} entries held", f"at most {output.peak_kv_tokens:,} entries held")
        self.out.print(table)

    def _forget(self, _: str) -> None:
        self.session.forget()
        self.say("forgotten: the conversation begins anew")

    def _help(self, _: str) -> None:
        for command, does in HELP.items():
            self.say(f"/{command:<10} {does}", "none")


def named(path: str) -> Path:
    """The file that somebody names.

    Raises:
        UserError: a user's folder, and there is no such user; no name for a file.
    """
    if "\0" in path:
        raise UserError("a file's name cannot hold a NUL; write another one.")
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(f"'{path}' is in the folder of a user that is not there; write ./{path} for a file of that name.") from e


def cost(turn: Turn) -> str:
    """What the memory came to, in one line.

    >>> cost(Turn("Hi", "Hello", tokens=412, entries=24, nbytes=1_105_920, peak=60))
    '[412 tokens so far -> 24 entries a layer, 1.11 MB, 17.2x]'
    """
    return f"[{turn.tokens:,} tokens so far -> {turn.entries:,} entries a layer, {turn.nbytes / 1e6:.2f} MB, {turn.ratio:.1f}x]"


def short(text: str, most: int = 24) -> str:
    """The beginning of a text, on one line.

    >>> short("My name is Jin.\\nI moved here from Busan.")
    'My name is Jin. I moved…'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
