"""One case of golden vectors, read: the model, the segments and the plan that we make of what its files say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from context_memory import plugins
from context_memory.model import CompressedLM
from context_memory.plan import SLOT, Tokens, layout, stack
from context_memory.schemes.base import Scheme
from context_memory.text import Segment

EMBEDDINGS = "model.embed_tokens.comp_embeddings.weight"
MODELS = ("LlamaForCausalLM_CCM", "GistLlamaForCausalLM", "T5ForConditionalGeneration_CCM", "GistT5ForConditionalGeneration")
SCHEMES = {
    "concat_recur": ("concat", True), "concat": ("concat", False), "merge_recur": ("merge", True), "merge": ("merge", False),
}  # fmt: skip


ALPHA = 16
"""LoRA's alpha where a case does not say."""


class Unknown(LookupError):
    """A case of a mode that we do not have (yet)."""


@dataclass(frozen=True)
class Watched(Scheme):
    """`pos_control`: the comp tokens are there and nothing is hidden. It has no use but as the original's control."""

    n_comp: int

    def sees(self, q: Tokens, k: Tokens) -> Tensor:
        return (k.segment == k.segment) & (q.segment == q.segment)

    def capacity(self, step: int) -> int:
        raise NotImplementedError("nothing is forgotten.")


class ModelCase:
    """One case: what the files say, and the model that we make of it."""

    embeddings = EMBEDDINGS
    """The name of the comp embeddings."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.meta: dict[str, Any] = json.loads(path.read_text())
        self.scheme = self._scheme()
        self.tensors = load_file(path.with_suffix(".safetensors"))
        if missing := sorted(set(self.meta.get("tensors", {})) - set(self.tensors)):
            raise ValueError(f"{path.with_suffix('.safetensors').name} lacks {', '.join(missing)}.")
        weights = load_file(path.parent / self.meta["weights"].partition(" (")[0])  # a remark may follow the name
        own = {k.removeprefix("weight."): v for k, v in self.tensors.items() if k.startswith("weight.")}
        self.comp: list[int] = self.meta["comp_token_ids"] or []
        self.sums: list[int] = self.meta["sum_token_ids"] or []
        found = {name.split(".")[-3]: len(w) for name, w in weights.items() if name.endswith("lora_A.weight")}
        told = self.meta.get("lora") or {"r": max(found.values(), default=1)}  # a stream's json leaves it to the weights
        self.lora: dict[str, Any] = {"alpha": ALPHA, "targets": sorted(found), **told}
        self.lm = self._model(weights | own)

    def _scheme(self) -> Scheme:
        return scheme_of(self.meta)

    def _made(self, lora: LoraConfig, gate: str) -> CompressedLM:
        base = LlamaForCausalLM(LlamaConfig(**self.meta["config"])).float().eval()
        return CompressedLM(base, None, self.scheme, lora=lora, positions=self.meta["comp"]["relative_embedding"], gate=gate).eval()

    def _targets(self) -> list[str]:
        return list(self.lora["targets"])

    def _model(self, weights: dict[str, Tensor]) -> CompressedLM:
        config = LoraConfig(r=self.lora["r"], lora_alpha=self.lora["alpha"], lora_dropout=0.0, target_modules=self._targets())
        lm = self._made(config, "comp" if self.meta["comp"]["cond_lora"] else "all")
        named = {name.removeprefix("base.").replace(".base_layer", ""): p for name, p in lm.named_parameters()}
        self.parameters = {name.replace(".default", ""): p for name, p in named.items()}
        self.parameters[self.embeddings] = self.parameters.pop("comp.weight")
        if not self.comp:
            weights.pop(self.embeddings, None)
        if wrong := sorted(set(weights) ^ {n for n, p in self.parameters.items() if p.numel()}):
            raise ValueError(f"the weights of the case are not those of its model: {', '.join(wrong)}.")
        with torch.no_grad():
            for name, value in weights.items():
                own = self.parameters[name]
                own.copy_(value[: len(own)] if name == self.embeddings else value)  # rows behind feed SUM tokens, which nobody reads
        return lm


class Case(ModelCase):
    """A case that is laid out: its segments and its plan as well."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.real = [m.bool().nonzero()[:, 0] for m in self._attended()]
        self.rows = [self._segments(ids[m].tolist()) for ids, m in zip(self.tensors["input_ids"], self.real)]
        self.plan = stack([layout(row, self.scheme, self.lm.positions) for row in self.rows])
        self.ours, self.theirs = zip(*[self._match(r) for r in range(len(self.rows))])

    def _attended(self) -> Tensor:
        """(b, n) which columns are no padding."""
        return self.tensors["attention_mask"]

    def _segments(self, ids: list[int]) -> list[Segment]:
        """The ids of a row without padding -> its segments: a group of comp ids ends one; the rest is read and stays."""
        out: list[Segment] = []
        raw: list[int] = []
        sink = bool(self.meta["comp"]["sink"])
        at = 0

        def close(compress: bool) -> None:
            pins = (True,) + (False,) * (len(raw) - 1) if sink and raw and not out else ()
            out.append(Segment(tuple(raw), compress=compress, pins=pins, target=not compress))
            raw.clear()

        while at < len(ids):
            n = len(self.comp)
            if self.comp and ids[at] == self.comp[0]:
                if ids[at : at + n] != self.comp:
                    raise ValueError(f"expected the comp ids {self.comp} at token {at}, got {ids[at : at + n]}.")
                close(compress=True)
                at += n
                if self.sums and ids[at : at + n] == self.sums:
                    at += n
            elif ids[at] in (*self.comp, *self.sums):
                raise ValueError(f"comp or SUM id {ids[at]} stands alone at token {at}.")
            else:
                raw.append(ids[at])
                at += 1
        close(compress=False)
        return out

    def _match(self, row: int) -> tuple[Tensor, Tensor]:
        """Which of our columns is which of theirs. Slots that they do not have (all but the last of `merge`) are left out."""
        kind = self.plan.tokens.kind[row].tolist()
        ids = self.tensors["input_ids"][row][self.real[row]]
        sums = torch.isin(ids, torch.tensor(self.sums, dtype=ids.dtype)).tolist()
        ours = [i for i, k in enumerate(kind) if k < SLOT]
        slots = [i for i, k in enumerate(kind) if k == SLOT]
        ours += slots[len(slots) - sum(sums) :]
        theirs = [i for i, s in enumerate(sums) if not s] + [i for i, s in enumerate(sums) if s]
        if len(ours) != len(theirs):
            raise ValueError(f"row {row}: our plan has {len(ours)} tokens, the vectors have {len(theirs)}.")
        return torch.tensor(ours), self.real[row][torch.tensor(theirs)]


def scheme_of(meta: dict[str, Any]) -> Scheme:
    """The scheme that a case's configuration names.

    Raises:
        Unknown: none of ours.
    """
    model, comp = meta.get("model_class", "none"), meta["comp"]
    if model not in MODELS:
        raise Unknown(f"unknown mode: model class {model}; known: {', '.join(MODELS)}")
    kind, attention, n = comp["comp_type"], comp["attn_type"], comp["num_comp_tokens"]
    if kind in ("no", "neg_control"):
        return plugins.make("schemes", "full")  # type: ignore[return-value]
    if kind == "pos_control":
        return Watched(n)
    if kind == "fixed" or attention == "gist":
        return plugins.make("schemes", "gist", n_comp=n)  # type: ignore[return-value]
    if kind == "online" and attention in SCHEMES:
        key, recurrent = SCHEMES[attention]
        return plugins.make("schemes", key, n_comp=n, recurrent=recurrent)  # type: ignore[return-value]
    raise Unknown(f"unknown mode: comp_type {kind!r} with attn_type {attention!r}; known: online with {', '.join(SCHEMES)}; "
                  "fixed, no, neg_control, pos_control")  # fmt: skip


def apart(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference (NaN counts as infinite); tensors of different shapes are an error."""
    if a.shape != b.shape:
        raise ValueError(f"shape {tuple(a.shape)} is not theirs, {tuple(b.shape)}.")
    if not a.numel():
        return 0.0
    return float((a.detach().double() - b.double()).abs().nan_to_num(nan=float("inf")).max())
