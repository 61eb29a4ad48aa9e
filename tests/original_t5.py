"""The original's T5 in miniature, to make golden cases: SUM tokens in the input, dense masks, raw positions, LoRA multiplied by a mask.

It shares no code with `context_memory`: a plain encoder layer is written out here, and stock transformers does the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface, T5Config, T5ForConditionalGeneration

VOCAB, R, ALPHA = 40, 3, 12
ROWS = [([[9, 8, 7], [21], [33, 34]], [38, 11, 1], [6, 2, 1]), ([[7, 17, 27, 37]], [5, 6, 7, 1], [8, 1])]


def plain_attention(module, q, k, v, mask, position_bias=None, average=None, **_):  # type: ignore[no-untyped-def]
    """softmax(q k + bias) v, with the keys and values of SUM tokens replaced by an average first."""
    if average is not None:
        k, v = average[:, None] @ k, average[:, None] @ v
    scores = q @ k.transpose(-1, -2) + position_bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(q.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous(), None


AttentionInterface.register("original_t5_in_miniature", plain_attention)
AttentionMaskInterface.register("original_t5_in_miniature", lambda *_, **__: None)


def sees(kind: str, q: tuple[int, str], k: tuple[int, str], final: int) -> bool:
    """Whether a token (block, kind) of the encoder sees another: the masks of section 1.8 of the method's description."""
    (qb, qk), (kb, kk) = q, k
    if kind == "merge":
        return kk in ("comp", "sum") if qk == "sum" else qb == kb and (kk != "sum" or qb == final)
    return qb == kb or (kk == "comp" and ((kind in ("concat_recur", "gist") and kb < qb) or qb == final))


def write_case(folder: Path, kind: str, n: int) -> Path:
    """Write made.json and what it names; the path of the json."""
    torch.manual_seed(n)
    config = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
              "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu",
              "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**config)).eval().requires_grad_(False)
    model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, 32), requires_grad=False)
    for p in model.parameters():
        if p.ndim == 2:
            p.normal_(0, 0.15)  # well conditioned, as the LoRA below: gradients are compared in float32
    comp = list(range(VOCAB, VOCAB + n))
    sums = [c + n for c in comp] if kind == "merge" else []
    rows: list[list[tuple[int, tuple[int, str]]]] = []
    for contexts, question, _ in ROWS:
        row, block = [], 0
        for i, context in enumerate(contexts):
            row += [(t, (block, "raw")) for t in context]
            if kind != "gist" or i == len(contexts) - 1:
                row += [(t, (block, "comp")) for t in comp]
                block += 1
        row += [(t, (block, "sum")) for t in sums] + [(t, (block, "raw")) for t in question]
        rows.append(row)
    width, answers = max(map(len, rows)), max(len(r[2]) for r in ROWS)
    ids = torch.tensor([[t for t, _ in row] + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([a + [-100] * (answers - len(a)) for _, _, a in ROWS])
    mask, cross = torch.zeros(len(rows), width, width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    average = torch.eye(width).repeat(len(rows), 1, 1)
    for r, row in enumerate(rows):
        final = row[-1][1][0]
        for i, (token, q) in enumerate(row):
            for j, (_, k) in enumerate(row):
                mask[r, i, j] = sees(kind, q, k, final)
            cross[r, i] = q[0] == final or (q[1] == "comp" and kind != "merge")
            if token in sums:
                found = [j for j, (other, _) in enumerate(row) if other == token - n]
                average[r, i] = torch.zeros(width).index_fill(0, torch.tensor(found), 1 / len(found))
        mask[r, len(row) :, : len(row)] = 1  # a padded query must see something
    special = (ids >= VOCAB).float()[..., None]
    embeddings = (torch.randn(n + len(sums), 32) * 0.3).requires_grad_()
    lora: dict[str, Tensor] = {}
    for where, module in model.encoder.named_modules():
        if where.endswith((".q", ".k", ".v", ".o")):
            a, b = torch.randn(R, module.in_features) * 0.2, torch.randn(module.out_features, R) * 0.2
            lora |= {f"encoder.{where}.lora_A.weight": a.requires_grad_(), f"encoder.{where}.lora_B.weight": b.requires_grad_()}
            module.register_forward_hook(lambda _, x, out, a=a, b=b: out + (ALPHA / R) * (x[0] @ a.T @ b.T) * special)
    model.encoder.set_attn_implementation("original_t5_in_miniature")
    table = torch.cat([model.shared.weight, embeddings])
    extra = {"average": average} if sums else {}
    states = model.encoder(inputs_embeds=table[ids], attention_mask=mask.bool()[:, None], **extra).last_hidden_state
    logits = model(encoder_outputs=(states,), attention_mask=cross, labels=labels).logits
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    name = "shared.comp_embeddings.weight"
    theirs = mask * torch.tensor([[t != 0 for t in row] for row in ids.tolist()])[:, None]
    out = {"input_ids": ids, "attention_mask": theirs, "cross_attention_mask": cross, "labels": labels, "logits": logits,
           "encoder_last_hidden_state": states, "loss": loss[None], f"weight.{name}": embeddings}  # fmt: skip
    out |= {f"grad.{k}": v.grad for k, v in (lora | {name: embeddings}).items()}
    meta = {"case": "made", "weights": "weights_made.safetensors (and weight.*)", "config": config,
            "model_class": "T5ForConditionalGeneration_CCM",
            "comp": {"comp_type": "fixed" if kind == "gist" else "online", "attn_type": kind, "num_comp_tokens": n, "cond_lora": True,
                     "relative_embedding": "skip", "sink": False},
            "lora": {"r": R, "alpha": ALPHA}, "comp_token_ids": comp, "sum_token_ids": sums or None,
            "tensors": {k: [str(v.dtype), list(v.shape)] for k, v in out.items()}}  # fmt: skip
    weights = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k} | lora
    save_file({k: v.detach().contiguous() for k, v in out.items()}, folder / "made.safetensors")
    save_file({k: v.detach().contiguous() for k, v in weights.items()}, folder / "weights_made.safetensors")
    (folder / "made.json").write_text(json.dumps(meta))
    return folder / "made.json"
