"""CompressedSeq2Seq: a frozen encoder-decoder that remembers. The comp tokens live in the encoder; the decoder attends to the memory.

Context segments are encoded one after the other, each with its comp tokens, which later segments see in every layer of the encoder
(Kim et al. 2024; the original's encoder masks). The decoder attends to the encoder's outputs for comp tokens (for slots: their average),
pins and the question, and to nothing else. Plans, schemes, gate, memory, losses and batches are those of `CompressedLM`:

- a token of the answer is a token of the decoder. A plan says which these are (what a label predicts), `asked` takes them out of it;
- `hidden` puts the decoder's states where the labels of the plan stand, so that what trains a `CompressedLM` trains this.

Positions are `base` unless told otherwise, as in the original: distances count comp tokens.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from context_memory import attention, encoder_attention, mixing
from context_memory.encoder_generate import Answers
from context_memory.encoder_memory import EncoderMemory, attended, in_order
from context_memory.errors import InputError
from context_memory.families.base import EncoderDecoder
from context_memory.gate import Gate
from context_memory.memory import Memory
from context_memory.mixing import Mix
from context_memory.model import CompressedLM
from context_memory.output import Output, Settings
from context_memory.plan import IGNORE, PAD, Plan, visible
from context_memory.schemes.base import Scheme
from context_memory.text import Segment

ROLES = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
"""The chat template of models that have none and were trained to read and to write EOS at the end."""


@dataclass(frozen=True)
class Asked:
    """A plan taken apart: what the encoder runs, and what the decoder is to say after it."""

    plan: Plan
    step: Tensor
    """(b, 1) compressions before the answer."""
    clock: Tensor
    """(b, 1) the position where it begins."""
    answer: Tensor
    """(b, m) ids of the answer, `IGNORE` behind it."""


def asked(plan: Plan) -> Asked:
    """Split a plan at its labels: every token that a label predicts belongs to the decoder.

    Raises:
        ValueError: a row without an answer; packed rows; a comp token behind the first token of an answer.
    """
    t, labelled = plan.tokens, plan.labels != IGNORE
    rank = t.raw.cumsum(1)  # a label at the raw token of rank i is the raw token of rank i + 1
    predicted = torch.zeros(len(rank), int(rank.max()) + 2, dtype=torch.bool, device=rank.device)
    rows, columns = labelled.nonzero(as_tuple=True)
    predicted[rows, rank[rows, columns] + 1] = True
    answers = t.raw & predicted.gather(1, rank)
    if not bool(answers.any(1).all()) or bool((t.row > 0).any()):
        raise InputError("an encoder-decoder wants one answer a row, and no packing (training.packing=false).")
    first = answers.to(torch.int8).argmax(1, keepdim=True)
    behind = torch.arange(plan.shape[1], device=first.device) >= first
    if bool((behind & (t.kind != PAD) & ~answers).any()):
        raise InputError("an encoder-decoder writes its answer in one piece: no boundary or text may stand behind its first token.")
    counts = labelled.sum(1)
    answer = plan.labels.new_full((len(counts), int(counts.max())), IGNORE)
    answer[rows, labelled.cumsum(1)[rows, columns] - 1] = plan.labels[rows, columns]
    given = (t.kind != PAD) & ~answers
    width = int(given.any(0).nonzero().max()) + 1 if bool(given.any()) else 0
    tokens = replace(t, kind=torch.where(given, t.kind, PAD), row=torch.where(given, t.row, -1)).map(lambda x: x[:, :width])
    ids, slot, labels = ((x * given)[:, :width] for x in (plan.ids, plan.slot, plan.labels * 0))
    step, clock = t.segment.gather(1, first), t.position.gather(1, first)
    return Asked(Plan(tokens, ids, slot, labels + IGNORE, plan.groups), step, clock, answer)


class CompressedSeq2Seq(CompressedLM):
    """An encoder-decoder with a compressed memory. Arguments as of `CompressedLM`; LoRA goes to the encoder alone."""

    attend = staticmethod(encoder_attention.use)
    family: EncoderDecoder

    def __init__(
        self, base: Any, tokenizer: Any, scheme: Scheme, *, lora: LoraConfig | None = None, positions: str = "base",
        gate: str = "comp", attn_implementation: str = "sdpa",
    ) -> None:  # fmt: skip
        if not scheme.static:
            raise InputError(f"scheme '{scheme.name}' chooses by the keys of a decoder; an encoder-decoder wants one with a mask.")
        if scheme.learned:
            raise InputError(f"scheme.learned={scheme.learned} is not there for an encoder-decoder; use a rate that is not learnt.")
        if tokenizer is not None and not tokenizer.chat_template:
            tokenizer.chat_template = ROLES
        super().__init__(base, tokenizer, scheme, lora=lora, positions=positions, gate=gate, attn_implementation=attn_implementation)

    def _attach(self, lora: LoraConfig) -> None:
        lora = copy.copy(lora)
        lora.exclude_modules = r"decoder\..*"
        lora.task_type = lora.task_type and "SEQ_2_SEQ_LM"
        super()._attach(lora)

    @property
    def n_layers(self) -> int:
        """Layers of a memory: the encoder's, and one that holds its outputs."""
        return int(self.base.config.num_layers) + 1

    @property
    def max_positions(self) -> int:
        """Distances are relative: any."""
        return sys.maxsize

    @property
    def kv_bytes(self) -> int:
        """Bytes of one entry: keys and values of the encoder's layers, and an output."""
        c = self.base.config
        return int((2 * c.num_layers * c.num_heads * c.d_kv + c.d_model) * self.base.dtype.itemsize)

    def hidden(self, plan: Plan, memory: Memory | None = None, used: int = 0, adapter: bool = True) -> Tensor:
        """(b, n, hidden). With a memory: outputs of the encoder after its first `used` columns. Without: one pass over plan and
        answer, the decoder's states where the plan has labels, zeros elsewhere."""
        if memory is not None:
            return self.encode(plan, memory, used, adapter)
        parts = asked(plan)
        states = self.encode(parts.plan, adapter=adapter)
        seen = attended(self.scheme, parts.plan.tokens, parts.step, parts.clock)
        said = self.decode(states, seen, parts.answer)
        out = said.new_zeros(*plan.shape, said.shape[-1])
        out[plan.labels != IGNORE] = said[parts.answer != IGNORE]
        return out

    def encode(self, plan: Plan, memory: Memory | None = None, used: int = 0, adapter: bool = True, mix: Mix | None = None) -> Tensor:
        """(b, n, hidden) outputs of the encoder, in one pass or after a memory; averages at slots. `mix`: instead of the scheme's."""
        t = plan.tokens
        q = in_order(t).map(lambda x: x[:, :, None])
        k = in_order(t if memory is None else memory.held.map(lambda x: x[:, :used])).map(lambda x: x[:, None])
        embedded, mask = self.family.embed(self.base, plan.ids), visible(self.scheme, q, k)
        extra: dict[str, Any] = {}
        if has_comp := bool(t.comp.any()):
            embedded = self.comp(embedded, plan)
        plain = bool(mask.all()) and bool((t.position == torch.arange(plan.shape[1], device=self.device)).all())
        form = None
        if memory is not None or not plain:
            form = attention.form(mask, attention.implementation_of(self.base), embedded.dtype)
            extra = {"kv_bias": self.family.bias(self.base, k.position - q.position).to(embedded.dtype), "kv_memory": memory}
        if self.peft is not None and adapter:
            if self.gate == "all":
                extra["lora_gate"] = Gate(None)
            elif has_comp or self.training:
                extra["lora_gate"] = Gate(plan.gate())
        if memory is None and mix is None:  # a memory fills its slots when it folds
            mix = mixing.mix(plan, self.scheme)
        if mix is not None:
            extra["kv_mix"] = mix
        out: Tensor = self.base.get_encoder()(inputs_embeds=embedded, attention_mask=form, **extra).last_hidden_state
        if mix is not None and bool(t.slot.any()):
            keys, values = out[:, None].chunk(2, -1)
            out = torch.cat(mix.fill(keys, values, self.n_layers - 1), -1)[:, 0]
        if memory is not None:
            keys, values = out[:, None].chunk(2, -1)
            memory.update(keys, values, self.n_layers - 1)
        return out

    def decode(self, states: Tensor, seen: Tensor, answer: Tensor) -> Tensor:
        """(b, n, hidden) outputs of the encoder, (b, n) which of them count, (b, m) answer ids -> (b, m, hidden) the decoder's states
        from which those ids are predicted."""
        ids = self.base.prepare_decoder_input_ids_from_labels(answer)
        mask = None if bool(seen.all()) else seen.long()
        decoder = self.base.get_decoder()
        out = decoder(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False).last_hidden_state
        return out

    def memory(self, rows: int = 1) -> EncoderMemory:  # type: ignore[override]
        """An empty memory."""
        return EncoderMemory.empty(self, rows)

    def open(self, path: str | Path) -> Memory:
        raise InputError("the memory of an encoder-decoder is not saved; write its segments again.")

    def generate(
        self, prompts: str | Sequence[str] | Sequence[Sequence[int]], memory: EncoderMemory | None = None, **options: Any
    ) -> list[Output]:
        """Answer one prompt or a batch, a row a prompt, from what the memory holds (it is left as it was).

        Args:
            prompts: text, or token ids with their EOS.
            options: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop`.
        """
        texts: Sequence[Any] = [prompts] if isinstance(prompts, str) else prompts
        asked = [
            self.encoder.asked(text, first=True) if isinstance(text, str) else [Segment(tuple(text), compress=False, target=True)]
            for text in texts
        ]
        encoder = self.encoder if self.tokenizer is not None else None
        answers = Answers(self, encoder, asked, Settings.of(**options), None if memory is None else memory.fork())
        list(answers.run())
        return answers.outputs

    def stream(self, prompt: str, memory: Memory | None = None, **options: Any) -> Iterator[str]:
        raise InputError("an encoder-decoder gives its answer in one piece; use generate.")
