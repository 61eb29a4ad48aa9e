"""Answers of an encoder-decoder, by the stock `generate`: context is written to a memory segment by segment, and the decoder attends
to what is held and to the question.

Nothing is compressed while an answer is written: its own keys and values are the decoder's, as of any transformers model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.generate import Decoder
from context_memory.output import Output, Settings
from context_memory.text import Segment, runs

if TYPE_CHECKING:
    from context_memory.encoder_decoder import CompressedSeq2Seq
    from context_memory.encoder_memory import EncoderMemory
    from context_memory.model import CompressedLM


class Answers:
    """Decodes a batch, as `Decoder` does: iterate over `run()`, then look at `outputs`.

    Of an output, entries are what the decoder attends to across, and its answer; bytes are a row's share of the memory and of the
    encoder's outputs, and not the decoder's own cache.
    """

    def __init__(
        self, lm: CompressedSeq2Seq, encoder: Encoder | None, prompts: Sequence[Sequence[Segment]], settings: Settings,
        memory: EncoderMemory | None = None,
    ) -> None:  # fmt: skip
        if not prompts:
            raise InputError("no prompts to answer; give at least one.")
        self.lm, self.encoder, self.settings, self.prompts = lm, encoder, settings, prompts
        self.memory = memory if memory is not None else lm.memory(len(prompts))
        self.outputs = [Output(prompt_tokens=sum(len(s.ids) for s in p)) for p in prompts]

    @torch.no_grad()
    def run(self) -> Iterator[tuple[int, int]]:
        """Yields (row, token id), when all rows have ended; the token that ends an answer is left out."""
        turns = [runs(self.lm.scheme.arrange(p)) for p in self.prompts]
        context = [[t for t in row if t[-1].compress] for row in turns]
        for i in range(max(map(len, context))):
            self.memory.run([row[i] if i < len(row) else [] for row in context])
        questions = [[token for s in row[-1] if not s.compress for token in s.ids] for row in turns]
        reading, base = self.memory.read(questions), self.lm.base
        with torch.random.fork_rng(enabled=bool(self.settings.temperature)):  # the stock generate samples from the generators of all
            if self.settings.temperature:
                torch.manual_seed(self.settings.seed)
            written = base.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=reading.states), attention_mask=reading.seen.long(),
                max_new_tokens=self.settings.max_new_tokens, **self._options(),
            )  # fmt: skip
        size = (self.memory.nbytes() + reading.nbytes()) // len(self.prompts)
        seen, raw = reading.seen.sum(1).tolist(), reading.raw.tolist()
        for r, (out, row) in enumerate(zip(self.outputs, written[:, 1:].tolist())):
            self._fill(out, row)
            out.compressions, out.peak_kv_bytes = self.memory.step[r], size
            out.peak_kv_tokens, out.peak_reasoning_kv_tokens = seen[r] + len(out.ids), seen[r] - raw[r] + len(out.ids)
            out.mean_kv_tokens, out.mean_reasoning_kv_tokens = seen[r] + len(out.ids) / 2, seen[r] - raw[r] + len(out.ids) / 2
        for r, out in enumerate(self.outputs):
            yield from ((r, token) for token in out.ids)

    def pieces(self) -> Iterator[str]:
        """The answer to the only prompt, in one piece."""
        list(self.run())
        yield self.outputs[0].text

    def _options(self) -> dict[str, Any]:
        s = self.settings
        sampled = {"do_sample": True, "temperature": s.temperature, "top_p": s.top_p} if s.temperature else {"do_sample": False}
        return sampled | ({"stop_strings": list(s.stop), "tokenizer": self.lm.tokenizer} if s.stop else {})

    def _fill(self, out: Output, row: list[int]) -> None:
        """Put one row of the stock `generate` in: it pads rows that have ended."""
        config = self.lm.base.generation_config
        ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        out.ids = row[:stop]
        out.reason = "length" if stop is None else "eos"
        if stop is None and self.settings.stop:
            while out.ids and out.ids[-1] == config.pad_token_id:
                out.ids.pop()
        if self.encoder is not None:
            out.text = self.encoder.text(out.ids)
            found = [at for s in self.settings.stop if (at := out.text.find(s)) >= 0]
            if found:
                out.text, out.reason = out.text[: min(found)], "stop"


def decoder(lm: CompressedLM, encoder: Encoder, prompts: Sequence[Sequence[Segment]], settings: Settings) -> Decoder | Answers:
    """What decodes for this kind of model, from an empty memory."""
    kind: Any = Decoder if lm.family.causal else Answers
    made: Decoder | Answers = kind(lm, encoder, prompts, settings)
    return made
