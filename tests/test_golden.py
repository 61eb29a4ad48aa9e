"""What the original computes is what we compute: its golden vectors, and cases made by a miniature of it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import original_stream
import original_t5
from context_memory import golden
from original import LLAMA3, write_case

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("CCM_GOLDEN", ROOT.parent / "shared" / "golden"))
MADE = [
    {"kind": "concat_recur", "n": 3, "sink": True}, {"kind": "concat", "n": 2, "sink": True, "rope": LLAMA3},
    {"kind": "merge_recur", "n": 3, "rope": LLAMA3}, {"kind": "merge_recur", "n": 2, "sink": True, "positions": "base"},
    {"kind": "merge", "n": 2, "sink": True}, {"kind": "gist", "n": 4, "sink": True, "cond": False},
    {"kind": "pos_control", "n": 2, "comp_type": "pos_control"},
]  # fmt: skip


def cases() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.json") if not p.stem.startswith("weights_"))


@pytest.mark.skipif(not cases(), reason="no golden vectors here; set CCM_GOLDEN to their folder")
@pytest.mark.parametrize("name", cases() or ["none"])
def test_golden_vectors(name: str) -> None:
    passed, line = golden.check(FOLDER / f"{name}.json")
    assert passed, line


@pytest.mark.parametrize("settings", MADE, ids=lambda s: "-".join(map(str, s.values())).split("-{")[0])
def test_cases_of_a_miniature_of_the_original(tmp_path: Path, settings: dict) -> None:  # type: ignore[type-arg]
    write_case(tmp_path, **settings)
    passed, line = golden.check(tmp_path / "made.json")
    assert passed, line
    assert all(what in line for what in ("mask", "logits", "comp kv", "loss", "grad"))


@pytest.mark.parametrize(("kind", "n"), [("concat", 3), ("concat_recur", 1), ("gist", 3), ("merge", 1), ("merge", 3)])
def test_cases_of_an_encoder_decoder_in_miniature(tmp_path: Path, kind: str, n: int) -> None:
    path = original_t5.write_case(tmp_path, kind, n)
    odd = tmp_path / "odd.json"
    odd.write_text(path.read_text().replace('"attn_type": "merge"', '"attn_type": "merge_recur"'))
    assert kind != "merge" or "which the original has none of" in golden.check(odd)[1]
    passed, line = golden.check(path)
    assert passed, line
    assert all(what in line for what in ("mask", "cross", "encoder", "logits", "loss", "grad"))
    tensors = load_file(path.with_suffix(".safetensors"))
    for key in ("cross_attention_mask", "encoder_last_hidden_state", "logits", "loss"):  # the control: a changed vector fails
        first = tensors[key].view(-1)[:1]
        changed = 1 - first if key == "cross_attention_mask" else first + 1e-3
        save_file(tensors | {key: torch.cat([changed, tensors[key].view(-1)[1:]]).view_as(tensors[key])}, path.with_suffix(".safetensors"))
        assert not golden.check(path)[0]


STREAMS = [
    {}, {"merges": True}, {"beside": True}, {"merges": True, "beside": True}, {"merges": True, "sink": 0, "n": 1},
    {"n": 1, "slots": 3, "sink": 0, "rope": LLAMA3}, {"n": 3, "slots": 4, "sink": 4, "window": 20},
    {"n": 4, "slots": 8, "chunk": 9, "window": 30, "cond": False, "tokens": 100}, {"tokens": 18}, {"tokens": 17}, {"tokens": 9},
]  # fmt: skip
"""With 18 tokens the last one read makes room, with 17 none does."""


@pytest.mark.parametrize("settings", STREAMS, ids=lambda s: "-".join(s) or "concat")
def test_streams_of_a_miniature_of_the_original(tmp_path: Path, settings: dict) -> None:  # type: ignore[type-arg]
    path = original_stream.write_case(tmp_path, **settings)
    passed, line = golden.check(path)
    assert passed, line
    assert all(what in line for what in ("kv", "keys", "values", "nlls", "ppl"))


@pytest.mark.parametrize("key", ["compress3.k", "compress5.v", "final_k", "final_v", "nlls", "window_size", "ppl", "kv_after"])
@pytest.mark.parametrize("merges", [False, True])
def test_control_a_changed_stream_fails(tmp_path: Path, key: str, merges: bool) -> None:
    path = original_stream.write_case(tmp_path, merges)
    meta, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    if key in tensors:
        tensors[key].view(-1)[-1] += 1e-3
        save_file(tensors, path.with_suffix(".safetensors"))
    else:
        told = meta["compressions"][-1] if key == "kv_after" else meta
        told[key] += 1
        path.write_text(json.dumps(meta))
    passed, line = golden.check(path)
    assert not passed and ("over 0.0001" in line or "is not theirs" in line), line


def test_the_scaling_of_llama_3_is_read_from_the_configuration(tmp_path: Path) -> None:
    write_case(tmp_path, kind="concat_recur", rope=LLAMA3)
    path, wanted = tmp_path / "made.json", []
    for i in range(4):  # heads of eight numbers
        turn = 500000.0 ** (-i / 4)
        there = (32 * turn / (2 * math.pi) - 1.0) / (4.0 - 1.0)  # how far from the low to the high of the frequencies, in turns of 32
        wanted.append(turn * (min(max(there, 0), 1) * (1 - 1 / 8) + 1 / 8))
    assert golden.Case(path).lm.base.model.rotary_emb.inv_freq.tolist() == pytest.approx(wanted)
    whole = path.read_text()
    assert "rope_theta" not in json.loads(whole)["config"]["rope_scaling"]
    for name in ("rope_scaling", "rope_theta"):
        meta = json.loads(whole)
        del meta["config"][name]
        path.write_text(json.dumps(meta))
        assert "over 0.0001" in golden.check(path)[1]


def test_a_stream_that_averages_values_from_the_keys_is_not_ours(tmp_path: Path) -> None:
    path = original_stream.write_case(tmp_path, merges=True)
    path.write_text(path.read_text().replace('"value_merge_bug_fixed": true', '"value_merge_bug_fixed": false'))
    assert "averages values from the keys" in golden.check(path)[1]


GRAD = "grad.model.layers.1.self_attn.k_proj.lora_B.weight"


@pytest.mark.parametrize("key", ["allowed", "position_ids", "logits", "kv_comp.row0.k", "kv_comp.row0.v", "loss", GRAD])
def test_control_a_changed_vector_fails(tmp_path: Path, key: str) -> None:
    write_case(tmp_path, kind="merge_recur", n=2)
    path = tmp_path / "made.safetensors"
    tensors = load_file(path)
    last = tensors[key].view(-1)[-1:]
    tensors[key].view(-1)[-1] = ~last[0] if key == "allowed" else last[0] + (1 if key == "position_ids" else 1e-3)
    save_file(tensors, path)
    passed, line = golden.check(tmp_path / "made.json")
    assert not passed
    assert "over 0.0001" in line


def test_command_counts_an_unknown_mode_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path, "a_good")
    write_case(tmp_path, "b_odd")
    odd = tmp_path / "b_odd.json"
    meta = json.loads(odd.read_text())
    meta["comp"]["attn_type"] = "telepathy"
    odd.write_text(json.dumps(meta))
    assert golden.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [x[:4] for x in lines] == ["ok  ", "FAIL", "1 of"]
    assert "telepathy" in lines[1]
    assert golden.main([str(tmp_path), "--only", "a_*"]) == 0
    assert golden.main([str(tmp_path), "--only", "nobody"]) == 2


def test_a_broken_case_fails_with_its_reason(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "weights_made.safetensors").unlink()
    passed, line = golden.check(tmp_path / "made.json")
    assert not passed
    assert "weights_made.safetensors" in line
