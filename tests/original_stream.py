"""The original's streaming evaluation in miniature, to make golden cases: one token at a time, un-rotated keys, room made after a step.

Written from the description of the method and sharing no code with `context_memory`: the layers are written out here, and a key is
turned to its place in the cache at every step.
"""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from original import ALPHA, TARGETS, VOCAB, R

Cache = list[tuple[Tensor, Tensor]]
"""(heads, entries, size) keys and values of every layer."""


class Model:
    """A random llama with LoRA on comp tokens (or on all), layer by layer."""

    def __init__(self, config: dict[str, object], rows: int, cond: bool) -> None:
        self.stock = LlamaForCausalLM(LlamaConfig(**deepcopy(config))).eval().requires_grad_(False)
        for p in self.stock.parameters():
            if p.ndim == 2:
                p.normal_(0, 0.2)
        self.embeddings, self.cond = torch.randn(rows, self.stock.config.hidden_size), cond
        self.names = {m: name for name, m in self.stock.named_modules() if name.endswith(TARGETS)}
        self.lora = {f"{name}.lora_{ab}.weight": torch.randn(R, m.in_features) * 0.3 if ab == "A" else torch.randn(m.out_features, R) * 0.3
                     for m, name in self.names.items() for ab in "AB"}  # fmt: skip

    def project(self, module, x: Tensor, comp: bool) -> Tensor:  # type: ignore[no-untyped-def]
        a, b = (self.lora[f"{self.names[module]}.lora_{ab}.weight"] for ab in "AB")
        return module(x) + (ALPHA / R) * (x @ a.T @ b.T) * (comp or not self.cond)

    def turn(self, x: Tensor, start: int) -> Tensor:
        """(heads, n, size) at the positions from `start` on."""
        cos, sin = (a[0] for a in self.stock.model.rotary_emb(x, torch.arange(start, start + x.shape[1])[None]))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def run(self, ids: list[int], cache: Cache) -> tuple[Tensor, Cache]:
        """Logits behind the last of the ids, and the cache with them; they are all text or all comp tokens."""
        comp, n, out = ids[0] >= VOCAB, len(ids), []
        x = torch.cat([self.stock.model.embed_tokens.weight, self.embeddings])[ids]
        for layer, (keys, values) in zip(self.stock.model.layers, cache):
            a, h = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (self.project(p, h, comp).view(n, -1, a.head_dim).transpose(0, 1) for p in (a.q_proj, a.k_proj, a.v_proj))
            k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
            out.append((k, v))
            wide, long = (s.repeat_interleave(len(q) // len(s), 0) for s in (self.turn(k, 0), v))
            scores = self.turn(q, keys.shape[1]) @ wide.transpose(1, 2) / a.head_dim**0.5
            hidden = torch.ones(n, k.shape[1], dtype=torch.bool).triu(k.shape[1] - n + 1)
            read = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ long).transpose(0, 1).reshape(n, -1)
            x = x + self.project(a.o_proj, read, comp)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.stock.lm_head(self.stock.model.norm(x[-1])), out


def smaller(model: Model, cache: Cache, step: int, comp: list[int], merges: bool, sink: int, chunk: int, slots: int, beside: bool) -> Cache:
    """What is left of a full cache."""
    n, have = len(comp), cache[0][0].shape[1]
    memory = min(step, 1) * n if merges else min(step * n, slots)
    end = sink + memory + chunk
    fresh = model.run(comp, [(k[:, :end], v[:, :end]) for k, v in cache])[1]
    out: Cache = []
    for old, new in zip(cache, fresh):
        pair = []
        for was, now in zip(old, new):
            held, made = was[:, sink : sink + memory], now[:, -n:]
            if merges and step:
                made = (step * held + made) / (step + 1)
            elif not merges:
                made = torch.cat([held, made], 1)[:, -slots:]
            rest = was[:, end:]
            size = sink + made.shape[1] + have - end
            pair.append(torch.cat([was[:, :sink], was[:, have - (size - sink) :] if beside else torch.cat([made, rest], 1)], 1))
        out.append((pair[0], pair[1]))
    return out


@torch.no_grad()
def write_case(
    folder: Path, merges: bool = False, n: int = 2, window: int = 16, chunk: int = 6, slots: int = 4, sink: int = 1, tokens: int = 70,
    beside: bool = False, cond: bool = True, rope: dict[str, object] | None = None,
) -> Path:  # fmt: skip
    """Write made.json and what it names; the path of the json."""
    torch.manual_seed(n + sink)
    config = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6}  # fmt: skip
    config |= {"rope_theta": 500000.0, "rope_scaling": rope} if rope else {}
    comp = list(range(VOCAB, VOCAB + n))
    model = Model(config, n * (1 + merges), cond)
    cache: Cache = [(torch.zeros(2, 0, 8), torch.zeros(2, 0, 8)) for _ in range(2)]
    ids, nlls, told, out = torch.randint(5, VOCAB, (tokens,)).tolist(), [], [], {}
    for token, label in pairwise(ids):
        before = cache[0][0].shape[1]
        logits, cache = model.run([token], cache)
        nlls.append(cross_entropy(logits, torch.tensor(label)))
        if before >= window:
            cache = smaller(model, cache, len(told), comp, merges, sink, chunk, slots, beside)
            out |= {f"compress{len(told)}.{x}": torch.stack([pair[i] for pair in cache]) for i, x in enumerate("kv")}
            told.append({"kv_before": before + 1, "kv_after": cache[0][0].shape[1]})
    out |= {f"final_{x}": torch.stack([pair[i] for pair in cache]) for i, x in enumerate("kv")}
    out |= {"input_ids": torch.tensor(ids), "nlls": torch.stack(nlls), "weight.model.embed_tokens.comp_embeddings.weight": model.embeddings}
    sums = [c + n for c in comp] if merges else None
    meta = {"case": "made", "weights": "weights_made.safetensors", "config": config, "model_class": "LlamaForCausalLM_CCM_Stream",
            "comp": {"comp_type": "online", "attn_type": "merge_recur" if merges else "concat_recur", "num_comp_tokens": n,
                     "cond_lora": cond, "relative_embedding": "skip", "sink": sink > 0},
            "lora": {"r": R, "alpha": ALPHA, "targets": list(TARGETS)}, "comp_token_ids": comp, "sum_token_ids": sums,
            "window_size": window, "comp_size": chunk, "comp_cache_size": slots, "sink_size": sink, "value_merge_bug_fixed": merges,
            "do_comparison": beside, "ppl": float(torch.stack(nlls).mean().exp()), "compressions": told,
            "tensors": {k: [str(v.dtype), list(v.shape)] for k, v in out.items()}}  # fmt: skip
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "made.safetensors")
    save_file({k: v.contiguous() for k, v in (model.stock.state_dict() | model.lora).items()}, folder / "weights_made.safetensors")
    (folder / "made.json").write_text(json.dumps(meta))
    return folder / "made.json"
