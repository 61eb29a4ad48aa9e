"""The original's one pass in miniature, to make golden cases of any kind: its layout, its masks, its label shift.

Written from docs/papers.md alone and sharing no code with `context_memory`: left padding, SUM tokens in the input, dense
float masks (padding rows attend uniformly), LoRA computed for every token and multiplied by a mask, a dense averaging matrix.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

VOCAB, PAD, BOS, SEP = 128, 0, 1, [3, 4]
R, ALPHA, TARGETS = 3, 12, ("q_proj", "k_proj", "v_proj", "o_proj")
ROWS = [([[9, 8, 7], [21], [33, 34]], [50, 51], [60, 61, 2]), ([[70, 71, 72, 73]], [5, 6], [80, 2])]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def plain_attention(module, q, k, v, mask, dots=None, scaling=1.0, average=None, **_):  # type: ignore[no-untyped-def]
    """softmax(q k) v, with the keys and values of SUM tokens replaced by an average first; keeps what it used in `dots`."""
    if average is not None:
        k, v = average[:, None] @ k, average[:, None] @ v
    dots.append((k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) * scaling).masked_fill(~mask, torch.finfo(q.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), None


AttentionInterface.register("original_in_miniature", plain_attention)
AttentionMaskInterface.register("original_in_miniature", lambda *_, **__: None)


def lay_out(contexts, query, target, comp, sums, fixed, last_only):  # type: ignore[no-untyped-def]
    """(ids, block of each token) of one row: bos c1 COMP [SUM] sep c2 COMP [SUM] sep query sep target."""
    ids, blocks, block = [BOS], [0], 0

    def add(some, where):  # type: ignore[no-untyped-def]
        ids.extend(some)
        blocks.extend([where] * len(some))

    for i, context in enumerate(contexts):
        last = i == len(contexts) - 1
        add(([*SEP] if i else []) + context, block)
        if last or not fixed:
            add(comp, block)
            add(sums if last or not last_only else [], block)
            block += 1 if comp else 0
    add([*SEP, *query, *SEP], block)
    labels = [-100] * len(ids) + target
    add(target, block)
    return ids, blocks, labels


def sees(kind: str, q: int, k: int, final: int, is_comp: bool, is_sum: bool) -> bool:
    """Whether a token of block q sees a token of block k (causality aside): the table of docs/papers.md."""
    if q == k or kind == "pos_control":
        return True
    return {
        "concat_recur": is_comp, "concat": is_comp and q == final, "gist": is_comp,
        "merge_recur": is_sum and k == q - 1, "merge": is_sum and q == final,
    }[kind]  # fmt: skip


def write_case(
    folder: Path, name: str = "made", kind: str = "concat_recur", n: int = 2, sink: bool = False, positions: str = "skip",
    cond: bool = True, rope: dict[str, object] | None = None, comp_type: str = "",
) -> None:  # fmt: skip
    """Write NAME.json, NAME.safetensors and weights_NAME.safetensors."""
    torch.manual_seed(len(name) + n)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}  # fmt: skip
    config = sizes | ({"rope_theta": 500000.0, "rope_scaling": rope} if rope else {})
    model = LlamaForCausalLM(LlamaConfig(**deepcopy(config))).eval().requires_grad_(False)  # a configuration writes into what it gets
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(0, 0.2)
    comp, merges = list(range(VOCAB, VOCAB + n)), kind.startswith("merge")
    sums = [c + n for c in comp] if merges else []
    rows = [lay_out(*row, comp, sums, kind == "gist", kind == "merge") for row in ROWS]
    width = max(len(r[0]) for r in rows)
    ids, labels = (torch.tensor([[fill] * (width - len(r[i])) + r[i] for r in rows]) for i, fill in ((0, PAD), (2, -100)))
    real = torch.tensor([[0] * (width - len(r[0])) + [1] * len(r[0]) for r in rows])
    position = (real.cumsum(1) - 1).clamp(min=0) if positions == "base" else torch.ones_like(ids)
    allowed = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
    average = torch.eye(width).repeat(len(rows), 1, 1)
    for r, (row, blocks, _) in enumerate(rows):
        off, text = width - len(row), -1
        for i, token in enumerate(row):
            text += token < VOCAB
            if positions == "skip":
                position[r, off + i] = text if token < VOCAB else text + 1 + (token - VOCAB) % n
            for j in range(i + 1):
                ok = sees(kind, blocks[i], blocks[j], blocks[-1], row[j] in comp, row[j] in sums)
                allowed[r, 0, off + i, off + j] = ok or (sink and j == 0)
            if token in sums:
                found = [j for j in range(i) if row[j] == token - n]
                average[r, off + i] = 0
                average[r, off + i, [off + j for j in found]] = 1 / len(found)
    is_comp = (ids >= VOCAB).float()
    embeddings = torch.randn(n + len(sums), 32).requires_grad_()
    lora = {f"{m}.lora_{ab}.weight": p for m, x in model.named_modules() if m.endswith(TARGETS)
            for ab, p in (("A", torch.randn(R, x.in_features) * 0.3), ("B", torch.randn(x.out_features, R) * 0.3))}  # fmt: skip
    for p in lora.values():
        p.requires_grad_()

    def conditional(where: str):  # type: ignore[no-untyped-def]
        a, b = lora[f"{where}.lora_A.weight"], lora[f"{where}.lora_B.weight"]
        return lambda _, x, out: out + (ALPHA / R) * (x[0] @ a.T @ b.T) * (is_comp[..., None] if cond else 1)

    for where, module in model.named_modules():
        if where.endswith(TARGETS):
            module.register_forward_hook(conditional(where))
    model.set_attn_implementation("original_in_miniature")
    dots: list[tuple[Tensor, Tensor]] = []
    table = torch.cat([model.get_input_embeddings().weight, embeddings])
    extra = {"dots": dots, "average": average if merges else None}
    logits = model(inputs_embeds=table[ids], attention_mask=allowed, position_ids=position, use_cache=False, **extra).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    trained = lora | {"model.embed_tokens.comp_embeddings.weight": embeddings}
    out = {"input_ids": ids, "attention_mask": real, "labels": labels, "position_ids": position, "allowed": allowed,
           "logits": logits, "loss": loss[None], "weight.model.embed_tokens.comp_embeddings.weight": embeddings}  # fmt: skip
    out |= {f"grad.{k}": v.grad for k, v in trained.items()}
    for r in range(len(rows)):
        at = is_comp[r].nonzero()[:, 0]
        out |= {f"kv_comp.row{r}.{x}": torch.stack([layer[i][r][:, at] for layer in dots]) for x, i in (("k", 0), ("v", 1))}
        out[f"kv_comp.row{r}.index"] = at
    meta = {"case": name, "weights": f"weights_{name}.safetensors", "config": config, "model_class": "LlamaForCausalLM_CCM",
            "comp": {"comp_type": comp_type or ("fixed" if kind == "gist" else "online"), "attn_type": kind, "num_comp_tokens": n,
                     "cond_lora": cond, "relative_embedding": positions, "sink": sink},
            "lora": {"r": R, "alpha": ALPHA, "targets": list(TARGETS)}, "comp_token_ids": comp, "sum_token_ids": sums or None,
            "tensors": {k: [str(v.dtype), list(v.shape)] for k, v in out.items()}}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(meta))
    save_file({k: v.detach().contiguous() for k, v in out.items()}, folder / f"{name}.safetensors")
    weights = dict(model.state_dict()) | {k: v.detach() for k, v in lora.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"weights_{name}.safetensors")
