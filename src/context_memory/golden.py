"""Golden vectors: what the original code computed on tiny models, held against what we compute from the same ids and weights.

    python -m context_memory.testing golden DIR [--only PATTERN]

One line a case: name, what was compared, largest absolute difference; exit code 1 if one is over 1e-4 (float32), or a case
cannot be run. A case is `NAME.json` (configuration, token ids) and `NAME.safetensors`; everything is read from the two.

Compared: `mask` (theirs with ours, on real columns), `positions`, `logits`, `comp kv` (keys and values of comp tokens and
slots, every layer), `loss`, `grad` (LoRA and comp embeddings), and where a case has them `memory` (step by step through
`Memory`) and `query` (a prompt read after it). Rows are run without their padding and without a rule of theirs: the
segments come from where the comp ids stand, all the rest from our plan. Cases of T5 are compared by `golden_encoder.py`,
streams by `golden_stream.py`; their docstrings say what.

Where the original is wrong, the side that we take:

- Its merge without a sink crashes in the recursive path (an undefined variable). Ours runs; the vectors have that fixed.
- In its one pass the token after a boundary is predicted from the comp token. We predict it from the last raw token of the
  segment (`plan.layout`). Logits agree position by position; here the loss is taken with *their* shift.
- With `base` positions its SUM tokens advance the clock. Our slots never do; here the vectors' own positions are fed.
- It runs LoRA on SUM tokens, whose outputs nobody reads: those rows of the logits are left out.
- Its fully masked padding rows attend uniformly to everything: nothing there is compared. A label that is predicted from
  such a row (or from a SUM row) is a defect of the batch: then loss and gradients are said to be left out.
- The GSM8K fork trains without a compression mask (`fork_*_gsm8k_masked_*` adds it back), and streaming merge averages values
  from the keys: we follow the fixed vectors, and a stream that is not fixed fails with that reason.
- Its T5 has no recurrent merge: its collator refuses one, and its SUM tokens average later comp tokens too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from context_memory import golden_encoder, golden_stream
from context_memory.golden_case import Case, apart
from context_memory.plan import IGNORE, SLOT, Plan

TOLERANCE = 1e-4


class Tap(TorchFunctionMode):
    """Listens to attention: (keys, values) of every layer as attention uses them, after RoPE and after mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            self.heard.append((args[1].detach(), args[2].detach()))
        return func(*args, **(kwargs or {}))


class Comparison:
    """A case held against us, one quantity after the other."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan, self.tensors = case, case.plan, case.tensors
        kinds = case.plan.tokens.kind
        self.read = [kinds[r][ours] < SLOT for r, ours in enumerate(case.ours)]
        """Row by row, which of the columns that both have are tokens whose output is used (no SUM, no slot)."""

    def __iter__(self) -> Iterator[tuple[str, float | None]]:
        """(what, largest absolute difference), None for what the case has and cannot be compared."""
        yield "mask", self._mask()
        if not (self.case.sums and self.case.lm.positions == "base"):
            yield "positions", self._rows(self.plan.tokens.position, self.tensors["position_ids"])
        with Tap() as tap:
            logits = self.case.lm(self._placed())
        yield "logits", self._rows(logits, self.tensors["logits"], self.read)
        if "kv_comp.row0.k" in self.tensors:
            yield "comp kv", self._comp_kv(tap.heard)
        if "loss" in self.tensors:
            yield from self._loss(logits)
        with torch.no_grad():
            yield from self._recursion()

    def _columns(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(row, our columns, their columns)."""
        for r, (ours, theirs) in enumerate(zip(self.case.ours, self.case.theirs)):
            yield r, ours, theirs

    def _rows(self, own: Tensor, wanted: Tensor, keep: Sequence[Tensor] | None = None) -> float:
        """Largest difference on the columns that both have, or those of them to keep."""
        which = keep or [torch.ones_like(x) for x in self.read]
        return max(apart(own[r, ours[which[r]]], wanted[r, theirs[which[r]]]) for r, ours, theirs in self._columns())

    def _mask(self) -> float:
        """1.0 if any token sees what it should not, or the reverse; slots that they do not have must not be seen."""
        mask, found = self.plan.mask(self.case.scheme), 0.0
        for r, ours, theirs in self._columns():
            allowed = self.tensors["allowed"][r, 0][theirs[self.read[r]]]
            if int(allowed.sum()) != int(allowed[:, theirs].sum()):
                raise ValueError(f"row {r}: a real token sees padding in their mask.")
            wide = torch.zeros(len(allowed), mask.shape[-1], dtype=torch.bool)
            wide[:, ours] = allowed[:, theirs]
            found = max(found, apart(mask[r][ours[self.read[r]]], wide))
        return found

    def _placed(self) -> Plan:
        """Our plan at the vectors' own positions."""
        position = self.plan.tokens.position.clone()
        for r, ours, theirs in self._columns():
            position[r, ours] = self.tensors["position_ids"][r, theirs]
        return replace(self.plan, tokens=replace(self.plan.tokens, position=position))

    def _comp_kv(self, heard: Sequence[tuple[Tensor, Tensor]]) -> float:
        found, heads = 0.0, int(self.case.lm.base.config.num_key_value_heads)
        for r, ours, theirs in self._columns():
            place = dict(zip(theirs.tolist(), ours.tolist()))
            columns = torch.tensor([place[i] for i in self.tensors[f"kv_comp.row{r}.index"].tolist()], dtype=torch.long)
            for name, states in zip("kv", zip(*heard)):
                own = torch.stack([x[r, :: x.shape[1] // heads][:, columns] for x in states])  # some kernels get repeated heads
                found = max(found, apart(own, self.tensors[f"kv_comp.row{r}.{name}"]))
        return found

    def _loss(self, logits: Tensor) -> Iterator[tuple[str, float | None]]:
        """With the original's shift: a label is predicted by the position before it, whatever stands there."""
        own, wanted = [], []
        for r, ours, theirs in self._columns():
            place = dict(zip(theirs[self.read[r]].tolist(), ours[self.read[r]].tolist()))
            labels = self.tensors["labels"][r, 1:]
            for at in (labels != IGNORE).nonzero()[:, 0].tolist():
                if at not in place:
                    yield "loss", None
                    return
                own.append(logits[r, place[at]])
                wanted.append(labels[at])
        loss = cross_entropy(torch.stack(own), torch.stack(wanted))
        yield "loss", apart(loss[None], self.tensors["loss"])
        if names := [k for k in self.tensors if k.startswith("grad.")]:
            loss.backward()
            yield "grad", max(self._gradient(k.removeprefix("grad."), self.tensors[k]) for k in names)

    def _gradient(self, name: str, wanted: Tensor) -> float:
        own = self.case.parameters[name].grad
        if own is None:
            raise ValueError(f"no gradient reaches {name}.")
        sums = own.new_zeros(len(wanted) - len(own), *own.shape[1:])  # the embeddings of SUM tokens feed nothing
        return apart(torch.cat([own, sums]), wanted)

    def _recursion(self) -> Iterator[tuple[str, float | None]]:
        rows = [r for r in range(len(self.read)) if f"rec.row{r}.logits" in self.tensors]
        offsets = {told["row"]: told["pos_id_offset_at_query"] for told in self.case.meta.get("recursive", [])}
        held = read = 0.0
        for r in rows:
            memory = self.case.lm.memory()
            for i, segment in enumerate(self.case.rows[r][:-1]):
                memory.run([[segment]])
                for name, states in (("k", [x.keys for x in memory.layers]), ("v", [x.values for x in memory.layers])):
                    if (wanted := self.tensors.get(f"rec.row{r}.step{i}.mem_{name}")) is not None:
                        held = max(held, apart(torch.cat(states), wanted))
            if memory.clock[0] != offsets.get(r, memory.clock[0]):
                raise ValueError(f"row {r}: our clock stands at {memory.clock[0]} before the query, theirs at {offsets[r]}.")
            query = self.tensors[f"rec.row{r}.query_ids"].tolist()
            read = max(read, apart(memory.read(query)[0], self.tensors[f"rec.row{r}.logits"]))
        if rows:
            yield "memory", held
            yield "query", read


def compared(path: Path) -> Iterator[tuple[str, float | None]]:
    """What `Comparison` yields, for the case in a json file, of whatever kind."""
    meta = json.loads(path.read_text())
    kind = meta.get("model_class", "")
    if "window_size" in meta or kind.endswith("_Stream"):
        return golden_stream.compare(golden_stream.StreamCase(path))
    return golden_encoder.compare(golden_encoder.EncoderCase(path)) if "T5" in kind else iter(Comparison(Case(path)))


def check(path: Path) -> tuple[bool, str]:
    """(passed, the line that says so) for the case in a json file."""
    try:
        done = list(compared(path))
    except (OSError, KeyError, ValueError, LookupError, SafetensorError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        return False, f"FAIL  {path.stem:44}  {reason}"
    figures = {what: value for what, value in done if value is not None}
    worst = max(figures, key=lambda what: figures[what])
    over = [f"{what} {value:.1e}" for what, value in figures.items() if not value <= TOLERANCE]
    line = f"{'FAIL' if over else 'ok  '}  {path.stem:44}  {', '.join(figures)}  max {figures[worst]:.1e} ({worst})"
    if over:
        line += f"  over {TOLERANCE:g}: {', '.join(over)}"
    if ("loss", None) in done:
        line += "  (loss and gradients left out: a label is predicted from padding or a SUM token)"
    return not over, line


def main(argv: list[str] | None = None) -> int:
    """Check every case of a folder. Exit code 0, 1 if a case failed, 2 if there is nothing to check."""
    parser = argparse.ArgumentParser(prog="python -m context_memory.testing golden", description="Check golden vectors.")
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cases whose name matches, such as 'ref_mha_merge*'")
    options = parser.parse_args(argv)
    cases = [p for p in sorted(options.folder.glob("*.json")) if not p.stem.startswith("weights_")]
    paths = [p for p in cases if fnmatch(p.stem, options.only)]
    if not paths:
        told = f"no case matches '{options.only}' among {len(cases)}" if cases else "no cases"
        print(f"{told} in '{options.folder}'; give a folder of NAME.json and NAME.safetensors.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed = 0
    for path in paths:
        passed, line = check(path)
        failed += not passed
        print(line, flush=True)
    print(f"{len(paths) - failed} of {len(paths)} passed")
    return int(failed > 0)
