"""Golden vectors of the original's T5, row by row: `mask`, `cross` (what the decoder attends to), `encoder`, `logits`, `loss`, `grad`.

Its relative positions are raw indices, whatever the configuration says. Its `merge` runs SUM tokens as trained tokens of their own: one
group behind the last comp tokens, which sees all of those, and whose outputs the decoder reads. That needs every comp token until the
end and cannot go step by step; our slots take the average of the outputs instead. The vectors are held against the same machinery
(masks, mix, gate, embeddings) with SUM tokens laid out as the original does (`Summed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration

from context_memory.encoder_decoder import CompressedSeq2Seq
from context_memory.encoder_memory import attended, in_order
from context_memory.families.t5 import T5
from context_memory.golden_case import Case, Unknown, apart
from context_memory.mixing import Mix
from context_memory.plan import COMP, IGNORE, RAW, Column, Plan, Tokens, build, layout, visible
from context_memory.schemes.base import Scheme
from context_memory.schemes.merge import Merge


@dataclass(frozen=True)
class Summed(Scheme):
    """The original's `merge`: SUM tokens (here comp tokens that `reads`) see all comp tokens; what comes after sees them alone."""

    n_comp: int

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return torch.where(q.comp & q.reads, k.comp, k.segment == q.segment)

    def capacity(self, step: int) -> int:
        raise NotImplementedError("it is of use in one pass alone.")


class EncoderCase(Case):
    """A case of T5: the model, and a plan for every row."""

    embeddings = "shared.comp_embeddings.weight"
    lm: CompressedSeq2Seq

    def _made(self, lora: LoraConfig, gate: str) -> CompressedSeq2Seq:
        base = T5ForConditionalGeneration(T5Config(**self.meta["config"])).float().eval()
        if not self.meta["config"].get("tie_word_embeddings", True):  # transformers 5 ties a model that comes from no checkpoint
            base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
        return CompressedSeq2Seq(base, None, self.scheme, lora=lora, gate=gate).eval()

    def _scheme(self) -> Scheme:
        scheme = super()._scheme()
        if isinstance(scheme, Merge) and scheme.recurrent:
            raise Unknown("unknown mode: merge_recur of an encoder-decoder, which the original has none of; its T5 knows merge.")
        return Summed(2 * scheme.n_comp) if isinstance(scheme, Merge) else scheme

    def _targets(self) -> list[str]:
        return list(T5.targets)

    def _attended(self) -> Tensor:
        mask = self.tensors["attention_mask"]
        return mask if mask.ndim == 2 else mask.any(1)

    def _match(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self.real[row])), self.real[row]

    def plans(self) -> Iterator[tuple[Plan, Mix | None]]:
        """A plan for every row, column by column theirs without the padding; and how SUM tokens are filled, where there are any."""
        for segments, ids, real in zip(self.rows, self.tensors["input_ids"], self.real):
            summed = isinstance(self.scheme, Summed)
            yield self._summed(ids[real].tolist()) if summed else (layout(segments, self.scheme, self.lm.positions), None)

    def _summed(self, ids: list[int]) -> tuple[Plan, Mix]:
        special, n, step = [*self.comp, *self.sums], len(self.comp), 0
        columns: list[Column] = []
        for at, token in enumerate(ids):
            k = special.index(token) if token in special else -1
            columns.append((RAW if k < 0 else COMP, step, k >= n, False, at, token if k < 0 else 0, max(k, 0)))
            step += k == n - 1
        if step != ids.count(self.comp[0]) or ids.count(self.sums[0]) != 1:
            raise ValueError("expected whole groups of comp ids, and one group of SUM ids behind the last.")
        source, first = (torch.tensor(ids) == self.comp[0]).nonzero(), ids.index(self.sums[0])
        lanes = torch.arange(n)
        return build([columns]), Mix(torch.full((1, 1, step), 1 / step), (source + lanes)[None], lanes * 0, first + lanes, lanes)


def compare(case: EncoderCase) -> Iterator[tuple[str, float | None]]:
    """(what, largest absolute difference), as of `golden.Comparison`."""
    found: dict[str, float] = {}
    said = []
    cross = case.tensors["cross_attention_mask"].bool()
    for r, ((plan, mix), real) in enumerate(zip(case.plans(), case.real)):
        ordered = in_order(plan.tokens)
        mask = visible(case.scheme, ordered.map(lambda x: x[:, :, None]), ordered.map(lambda x: x[:, None]))
        theirs = case.tensors["attention_mask"][r].bool()
        step, clock = torch.tensor([[int(plan.tokens.segment.max())]]), torch.tensor([[len(real)]])
        seen = attended(case.scheme, plan.tokens, step, clock)
        states = case.lm.encode(plan, mix=mix)
        logits = case.lm.logits(case.lm.decode(states, seen, case.tensors["labels"][r : r + 1]))[0]
        said.append(logits)
        for what, own, wanted in (
            ("mask", mask[0], theirs[real][:, real] if theirs.ndim == 2 else theirs[real].expand(len(real), -1)),
            ("cross", seen[0], cross[r, real]),
            ("encoder", states[0], case.tensors["encoder_last_hidden_state"][r, real]),
            ("logits", logits, case.tensors["logits"][r]),
        ):
            found[what] = max(found.get(what, 0.0), apart(own, wanted))
    yield from found.items()
    if "loss" in case.tensors:
        loss = cross_entropy(torch.cat(said), case.tensors["labels"].flatten(), ignore_index=IGNORE)
        yield "loss", apart(loss[None], case.tensors["loss"])
        if names := [k for k in case.tensors if k.startswith("grad.")]:
            loss.backward()
            grads = {k: case.parameters[k.removeprefix("grad.")].grad for k in names}
            if missing := [k for k, grad in grads.items() if grad is None]:
                raise ValueError(f"no gradient reaches {', '.join(missing)}.")
            yield "grad", max(apart(grad, case.tensors[k]) for k, grad in grads.items() if grad is not None)
