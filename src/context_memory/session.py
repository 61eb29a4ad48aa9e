"""A conversation on a memory: every turn is answered after what is remembered, and then becomes a segment of it.

While an answer is written, the user's turn is read as it stands and a copy of the memory is gone on from. When the answer is over, or is
broken off, both turns are run once more, each as a segment of its own, on the memory as it was before: what is held is exactly
what training held of the same turns (`Encoder.turns`), an answer that was broken off included. The copy with the raw turns is dropped.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from context_memory import memory_file
from context_memory.boundaries.turn import Turn as Uncut
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.generate import Decoder
from context_memory.memory import Memory
from context_memory.model import CompressedLM
from context_memory.output import Output, Settings
from context_memory.schemes.full import Full


@dataclass(frozen=True)
class Turn:
    """What one said and the other answered, and what the memory came to with it."""

    user: str
    answer: str
    tokens: int
    """Raw tokens of the conversation so far."""
    entries: int
    """What is held of them, a layer."""
    nbytes: int
    peak: int
    """Most entries held while the answer was written, its own and the question's included."""

    @property
    def ratio(self) -> float:
        """Raw tokens an entry."""
        return self.tokens / max(1, self.entries)


@dataclass
class _Open:
    """A turn that is being answered."""

    user: str
    decoder: Decoder
    shown: str = ""
    over: bool = False


class Session:
    """A conversation. Only one answer is written at a time; one that is left alone counts as broken off.

    Args:
        encoder: how turns become segments; the adapter's own, or without an adapter one that never cuts an answer.
        memory: what is remembered already; it is left as it is.
        settings: how to decode.

    Raises:
        ValueError: the memory of several conversations; a scheme that cannot go on.
    """

    def __init__(
        self, lm: CompressedLM, encoder: Encoder | None = None, memory: Memory | None = None, settings: Settings | None = None
    ) -> None:
        lm.family.must_be_causal("a conversation")
        if lm.scheme.max_steps is not None:
            raise InputError(
                f"scheme '{lm.scheme.name}' compresses at most {lm.scheme.max_steps} time(s) and a conversation does so every turn; "
                "use scheme=concat or scheme=merge."
            )
        if memory is not None and memory.rows != 1:
            raise InputError(f"a conversation has a memory of one row, got {memory.rows}; take one with memory.pick([0]).")
        own = lm.encoder if lm.card is not None and lm.card.config.get("boundary") else None
        self.lm, self.encoder = lm, encoder or own or Encoder(lm.tokenizer, Uncut())
        self.settings = settings or Settings()
        self.turns: list[Turn] = []
        self.memory = lm.memory() if memory is None else memory.fork()
        self.before = self.memory.raw[0]
        """Raw tokens that were remembered before the first turn."""
        self._open: _Open | None = None

    def say(self, text: str) -> Generator[str, None, None]:
        """The answer, in pieces as they come. Both turns are in the memory once it is over, or broken off; if nothing was shown by
        then, or something fails, neither is.

        Raises:
            ValueError: there is no text; the conversation is longer than the model can count.
        """
        if not text.strip():
            raise InputError("there is nothing to answer: the text is empty. Say something.")
        self.settle()
        asked = self.encoder.asked(text, first=not self.memory.raw[0])
        return self._answer(_Open(text, Decoder(self.lm, self.encoder, [asked], self.settings, self.memory.fork())))

    def _answer(self, turn: _Open) -> Generator[str, None, None]:
        self._open = turn
        try:
            for piece in self._pieces(turn.decoder):
                turn.shown += piece
                yield piece
            turn.over = True
        except Exception:
            turn.shown = ""
            raise
        finally:
            if self._open is turn:
                self.settle()

    def _pieces(self, decoder: Decoder) -> Generator[str, None, None]:
        """The answer; where turns are lines, its first line that is not blank."""
        some = False
        for piece in decoder.pieces():
            if not self.encoder.lines:
                yield piece
                continue
            line, end, _ = (piece if some else piece.lstrip()).partition("\n")
            if line:
                some = True
                yield line
            if end:
                return

    @torch.inference_mode()
    def settle(self) -> None:
        """Take an answer that was left alone for what it is. Called by all that needs it."""
        turn = self._open
        if turn is not None and (turn.over or turn.shown):
            memory = self.memory.fork()  # an interrupt while it is written leaves the old one, and the turn open
            try:
                for segment in self.encoder.turns([turn.user, turn.shown], first=not memory.raw[0]):
                    memory.run([[segment]])
            except Exception:
                self._open = None
                raise
            self.memory = memory
            cost = (memory.raw[0], memory.tokens, memory.nbytes(), turn.decoder.outputs[0].peak_kv_tokens)
            self.turns.append(Turn(turn.user, turn.shown, *cost))
        self._open = None

    def full(self) -> tuple[Generator[str, None, None], Output]:
        """The last question once more, answered with everything that was said in view: the pieces as they come, and what the answer
        cost so far. The memory is not touched.

        Raises:
            ValueError: nothing was said yet; part of the conversation is known to the memory alone.
        """
        self.settle()
        if not self.turns:
            raise InputError("nothing was said yet: there is no question to answer again. Say something first.")
        if self.before:
            raise InputError(
                f"{self.before} tokens were in the memory before the conversation began and their text is not known, so there is no full "
                "context; it can be had for conversations that start with an empty memory."
            )
        said = [text for turn in self.turns for text in (turn.user, turn.answer)]
        encoder = self.encoder
        prompt = [*encoder.turns(said[:-2]), *encoder.asked(said[-2], first=len(said) == 2)]
        decoder = Decoder(self.lm.under(Full()), encoder, [prompt], self.settings)
        return self._pieces(decoder), decoder.outputs[0]

    def forget(self) -> None:
        """Start anew, with nothing said and nothing remembered."""
        self._open, self.turns, self.memory, self.before = None, [], self.lm.memory(), 0

    def save(self, path: str | Path) -> None:
        """Write memory and conversation to a file, whole or not at all. `CompressedLM.open` reads its memory alone."""
        self.settle()
        notes = {"turns": [asdict(turn) for turn in self.turns], "before": self.before, "roles": asdict(self.encoder.roles)}
        memory_file.save(self.memory, path, notes)

    def open(self, path: str | Path) -> None:
        """Go on with the conversation in a file, or with a memory that has none. If it is refused, nothing has changed.

        Raises:
            UserError: see `memory_file.read`; a conversation with other roles.
        """
        memory, notes = memory_file.read(self.lm, path)
        if memory.rows != 1:
            raise UserError(f"'{path}' is a memory of {memory.rows} texts and a conversation has one; save memory.pick([0]).")
        if notes and notes["roles"] != asdict(self.encoder.roles):
            raise UserError(f"'{path}' is a conversation with other roles around its turns; open it with the same model.chat.")
        self._open, self.memory = None, memory
        self.turns = [Turn(**turn) for turn in notes.get("turns", [])]
        self.before = notes.get("before", memory.raw[0])
