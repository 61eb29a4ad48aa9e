"""`ccm chat` and what is typed in it: commands, slips, Ctrl-C, lines from a pipe and a history file."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import toys
from context_memory import CompressedLM, cli
from context_memory.commands.chat import _remembered
from context_memory.errors import UserError
from context_memory.session import Session
from context_memory.talk import HELP, Talk

Folders = tuple[Path, Path]
COST = re.compile(r"\[\d+ tokens so far -> \d+ entries a layer, \d+\.\d\d MB, \d+\.\dx\]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A tiny model and an adapter of it."""
    place = tmp_path_factory.mktemp("toy")
    model = toys.folder(place / "toy")
    return model, toys.adapters(place, model, boundary="turn", pins="[]")[1]


class Screen:
    """A talk whose two consoles can be read."""

    def __init__(self, folders: Folders) -> None:
        lm = CompressedLM.load(str(folders[0]), folders[1], dtype="float32")
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.session: Session = lm.chat(max_new_tokens=8)
        self.talk = Talk(self.session, Console(file=self.out, width=100), Console(file=self.notes, width=100))

    def type(self, *lines: str) -> tuple[str, str]:
        """What the lines print: answers, notes."""
        for console in (self.out, self.notes):
            console.seek(0)
            console.truncate()
        for line in lines:
            assert self.talk.line(line)
        return self.out.getvalue(), self.notes.getvalue()


@pytest.fixture
def screen(folders: Folders) -> Screen:
    return Screen(folders)


def test_an_answer_and_below_it_what_the_memory_came_to(screen: Screen) -> None:
    out, notes = screen.type("Hi [bold]")
    (turn,) = screen.session.turns
    assert turn.user == "Hi [bold]" and out == turn.answer + "\n"
    assert COST.fullmatch(notes.strip()) and f"{turn.tokens} tokens so far -> {turn.entries} entries" in notes
    out, notes = screen.type("", "   ")
    assert (out, notes, len(screen.session.turns)) == ("", "", 1)
    screen.type("//etc is a folder")
    assert screen.session.turns[-1].user == "/etc is a folder"


def test_the_commands(screen: Screen, tmp_path: Path) -> None:
    said = [screen.type(text)[0].strip("\n") for text in ("Hi", "Who are you?")]
    out, notes = screen.type("/memory")
    rows = [line.split() for line in out.splitlines() if line.strip()]
    assert [row[0] for row in rows] == ["turn", "1", "2"] and str(screen.session.turns[1].tokens) in rows[2]
    assert f"{screen.session.memory.tokens} entries a layer" in notes
    memory = screen.session.memory
    out, notes = screen.type("/full")
    assert "from the memory" in out and f"at most {screen.session.turns[-1].peak} entries held" in out and not notes.strip()
    assert screen.session.memory is memory and len(screen.session.turns) == 2

    _, notes = screen.type(f"/save {tmp_path / 'a b.ccm'}")
    assert "saved 2 turns to" in notes and (tmp_path / "a b.ccm").is_file()
    after = screen.type("And now?")[0]
    _, notes = screen.type("/forget")
    assert "begins anew" in notes and not screen.session.turns and screen.session.memory.tokens == 0
    assert "nothing was said yet" in screen.type("/full")[1]
    _, notes = screen.type(f"/open {tmp_path / 'a b.ccm'}")
    assert f"> Who are you?\n{said[1]}" in notes and "2 turns" in notes
    assert screen.type("And now?")[0] == after
    assert [line.split()[0] for line in screen.type("/help")[1].splitlines()] == [f"/{command.split()[0]}" for command in HELP]
    assert screen.talk.line("/quit") is False


def test_slips_are_said_and_the_conversation_goes_on(screen: Screen, tmp_path: Path) -> None:
    first = screen.type("Hi")[0]
    (tmp_path / "text").write_text("no memory")
    slips = {
        "/nonsense now": "no command '/nonsense'; have: /memory, /save FILE",
        "/": "no command '/'",
        "/save": "/save takes the name of a file",
        "/memory now": "/memory takes nothing behind it, got 'now'",
        f"/open {tmp_path / 'nowhere'}": "there is no memory at",
        f"/open {tmp_path / 'text'}": "damaged or not a memory file",
        f"/save {tmp_path}/nowhere/jin.ccm": "cannot be written to",
        f"/save {tmp_path}": "cannot be written to",
        "/save ~nouser/x.ccm": "a user that is not there",
        "/open ~nouser/x.ccm": "a user that is not there",
        "/save " + "x" * 300: "File name too long",
        "/save a\0b": "cannot hold a NUL",
        "x" * 4096: "past the model's 4096",
    }
    for line, message in slips.items():
        out, notes = screen.type(line)
        assert not out.strip() and notes.startswith("error: ") and message in notes, line
    assert len(screen.session.turns) == 1 and screen.session.turns[0].answer + "\n" == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]
    screen.type("Still there?")
    assert len(screen.session.turns) == 2


@pytest.mark.parametrize("at", [0, 3])
def test_an_interrupt_stops_the_answer_and_not_the_program(screen: Screen, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    write, pieces = screen.out.write, []

    def interrupted(text: str) -> int:
        if text != "\n":
            pieces.append(text)
        if len(pieces) > at:
            raise KeyboardInterrupt
        return write(text)

    with monkeypatch.context() as m:
        m.setattr(screen.out, "write", interrupted) if at else m.setattr(screen.session.lm, "hidden", lambda *_: interrupted("."))
        _, notes = screen.type("Hi")
    if at:
        (turn,) = screen.session.turns
        assert turn.answer == "".join(pieces) and "what was shown is remembered" in notes and COST.search(notes)
    else:
        assert not screen.session.turns and "the turn is not remembered" in notes and not COST.search(notes)
    screen.type("Go on")
    assert screen.session.turns[-1].user == "Go on"


def run(folders: Folders, typed: bytes, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    with pytest.raises(SystemExit) as end:
        cli.main(["chat", f"model={folders[0]}", "model.dtype=float32", "generation.max_new_tokens=5", *map(str, arguments)])
    return int(end.value.code or 0)


def test_lines_from_a_pipe(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with_adapter = ("--adapter", folders[1])
    assert run(folders, b"Hi\n\nMy \xff name\n/save jin.ccm\n/quit\nnever read\n", *with_adapter, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and len(COST.findall(err)) == 2 and "every turn is compressed" in err
    assert run(folders, b"And?", *with_adapter, "--open", "jin.ccm", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "> My \N{REPLACEMENT CHARACTER} name" in err and "opened jin.ccm: 2 turns" in err
    assert not (tmp_path / "history").exists()
    assert run(folders, b'/save ""\n/save "two words.ccm"\n/open .\n', *with_adapter, monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert "/save takes the name of a file" in err and "'.' is a folder and not a memory file" in err
    assert sorted(p.name for p in tmp_path.glob("*")) == ["jin.ccm", "two words.ccm"]


def test_what_is_to_be_opened_is_looked_for_first(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, said in (("nowhere", "there is no memory at 'nowhere'"), (str(tmp_path), "is a folder and not a memory file")):
        with pytest.raises(SystemExit) as end:
            cli.main(["chat", "model=nobody-knows-this", "--adapter", str(folders[1]), "--open", place])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_without_an_adapter_nothing_is_compressed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, b"Hi\nHo\n", monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert "nothing is compressed; that takes --adapter" in err and len(COST.findall(err)) == err.count("1.0x") == 2
    assert run(folders, b"Hi\n" * 3, "scheme=window", "scheme.size=4", monkeypatch=monkeypatch) == 0
    assert "-> 3 entries" in capsys.readouterr().err
    assert run(folders, b"Hi\n", "scheme=concat", monkeypatch=monkeypatch) == 2
    assert "needs a compression adapter" in capsys.readouterr().err


def test_a_history_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "history"):
        with pytest.raises(UserError, match=r"cannot be used .+ --history FILE"), _remembered(place):
            pass


@pytest.mark.slow
def test_at_a_terminal(folders: Folders, tmp_path: Path) -> None:
    """A real one: Ctrl-C while an answer is written, and at the prompt; Ctrl-D; the lines are kept for the next time."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "context_memory.cli", "chat", f"model={folders[0]}", "--adapter", str(folders[1])]
    settings = ["model.dtype=float32", "generation.max_new_tokens=3000", "--history", str(tmp_path / "at" / "history")]
    # The first terminal that the leader of a session opens is the one whose Ctrl-C it gets.
    shell = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(theirs)]
    child = subprocess.Popen(
        [*shell, *command, *settings], start_new_session=True, env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that a shell put into the background ignore it
    )  # fmt: skip
    seen = ""

    def expect(what: str, press: bytes = b"") -> str:
        """Press, and wait for it; what came before. A key that got no answer is pressed again, as a person would: Python's own input()
        does not hear a Ctrl-C between its prompt and its first wait for a key."""
        nonlocal seen
        until, again = time.monotonic() + 240, 0.0
        while what not in seen:
            assert time.monotonic() < until and child.poll() is None, f"{what!r} is not in {seen!r}"
            if press and time.monotonic() > again:
                os.write(ours, press)
                again = time.monotonic() + 20
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        before, _, seen = seen.partition(what)
        return before

    def stopped() -> bool:
        """Whether the answer was still being written when Ctrl-C came (a random model's may be over by then)."""
        os.write(ours, b"A long story\n")
        expect("A long story\r\n")
        if not seen:
            select.select([ours], [], [], 240)
        os.write(ours, b"\x03")
        in_time = "what was shown is remembered" in expect("entries a layer")
        expect("> ")
        if not in_time:  # the prompt's Ctrl-C, then: an empty line takes what is left of it
            os.write(ours, b"\n")
            expect("> ")
        return in_time

    try:
        expect("> ")
        assert any(stopped() for _ in range(5))
        expect("half a li", press=b"half a li")
        expect("Ctrl-D leaves.", press=b"\x03")
        expect("> ")
        os.write(ours, b"/memory\n")
        expect("A long story")
        expect("> ")
        os.write(ours, b"\x04")
        assert child.wait(timeout=60) == 0
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)
    assert (tmp_path / "at" / "history").read_text().split("\n")[-3:] == ["A long story", "/memory", ""]
