"""What callers do by habit or by mistake: a write that is broken off, threads, copies, bases with adapters of their own, other memories."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import toys
from context_memory import plugins
from context_memory.boundaries.every import Every
from context_memory.boundaries.newline import Newline
from context_memory.data.tally import Tally
from context_memory.encode import Encoder
from context_memory.errors import InputError, UserError
from context_memory.memory import Memory
from context_memory.model import CompressedLM
from context_memory.output import Settings
from context_memory.schemes.base import Scheme
from context_memory.schemes.concat import Concat
from context_memory.schemes.full import Full
from context_memory.schemes.key_norm import KeyNorm
from context_memory.schemes.merge import Merge
from context_memory.testing import tiny_lm
from context_memory.text import Example

torch.set_num_threads(1)
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
WORDS = toys.tokenizer()


def base(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def made(scheme: Scheme, of: LlamaForCausalLM | None = None, seed: int = 1, **lora: Any) -> CompressedLM:
    of = of or base()
    torch.manual_seed(seed)
    return CompressedLM(of, WORDS, scheme, lora=LoraConfig(**(LORA | lora)) if scheme.n_comp else None)


# ---- a pass that is broken off ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [Concat(n_comp=2), Merge(n_comp=2), plugins.make("schemes", "capped", cap=2)], ids=str)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_is_broken_off_leaves_the_memory_as_it_was(scheme: Scheme, before: int, error: type[BaseException]) -> None:
    lm = tiny_lm("llama", scheme)
    memory, clean = lm.memory(), lm.memory()
    for m in (memory, clean):
        for _ in range(before):
            m.write([5, 9, 3, 7])

    def break_off(*_: Any) -> None:
        raise error

    hook = lm.base.model.layers[1].mlp.register_forward_pre_hook(break_off)
    with pytest.raises(error):
        memory.write([1] * 40)
    hook.remove()
    assert (memory.length, memory.step, memory.clock, memory.raw) == (clean.length, clean.step, clean.clock, clean.raw)
    for m in (memory, clean):
        m.write([2, 8])
        m.write([4])
    assert memory.length == clean.length and memory.nbytes() == clean.nbytes()
    assert torch.equal(memory.read([6, 6]), clean.read([6, 6]))


def test_answers_of_two_threads_are_those_of_one() -> None:
    lm = made(Concat(n_comp=2))
    how: dict[str, Any] = {"boundary": Every(n=4), "pins": [], "max_new_tokens": 30}
    alone = lm.generate("a+b", **how)[0].ids
    found: list[list[int]] = []

    def ask() -> None:
        found.extend(lm.generate("a+b", **how)[0].ids for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [alone] * 10


def test_training_mode_with_checkpoints_has_no_memory() -> None:
    lm = made(Concat(n_comp=2))
    lm.base.activation_checkpointing_enable()
    lm.train()
    with pytest.raises(InputError, match=r"call lm.eval\(\) first"):
        lm.memory().write("abc")
    lm.eval().memory().write("abc")


# ---- adapters that are there, or cannot be ------------------------------------------------------------------------------------


def test_a_model_with_lora_layers_is_not_taken_over() -> None:
    of = base()
    first = made(Concat(n_comp=1), of)
    ids = torch.arange(4, 20)[None]
    memory = first.memory()
    memory.write("hello")
    said = memory.fork().read("q?")
    for targets in (["q_proj"], ["q_proj", "k_proj", "v_proj"]):
        with pytest.raises(InputError, match=r"carries LoRA layers already.*merge_and_unload"):
            made(Concat(n_comp=2), of, target_modules=targets)
    assert torch.equal(said, memory.fork().read("q?"))
    tuned = get_peft_model(base(), LoraConfig(**LORA), adapter_name="mine").eval()
    reference = tuned(ids).logits
    with pytest.raises(InputError, match="carries LoRA layers already"):
        made(Concat(n_comp=1), tuned.base_model.model)
    for scheme in (Concat(n_comp=1), Full()):
        with pytest.raises(InputError, match=r"PeftModel.*merge_and_unload"):
            made(scheme, tuned)  # type: ignore[arg-type]
    assert torch.equal(reference, tuned(ids).logits)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "LoRA on 'lm_head' would act on every text"),
        ({"use_dora": True}, "of 'model.layers.0.*DoRA"),
    ],
)
def test_lora_that_no_gate_can_hold_is_refused(lora: dict[str, Any], message: str) -> None:
    of = base()
    modules = list(of.modules())
    with pytest.raises(InputError, match=message):
        made(Concat(n_comp=1), of, **lora)
    assert list(of.modules()) == modules


def test_a_new_adapter_is_in_the_mode_of_its_model() -> None:
    lm = made(Concat(n_comp=1), lora_dropout=0.5)
    assert not any(m.training for m in lm.modules())
    assert made(Concat(n_comp=1), base().train()).training


# ---- memories that belong elsewhere -------------------------------------------------------------------------------------------


def test_memories_of_other_weights_and_schemes_are_refused(tmp_path: Path) -> None:
    lm = made(Concat(n_comp=1))
    memory = lm.memory()
    memory.write("I have 23 coins")
    memory.save(tmp_path / "x.ccm")
    assert lm.open(tmp_path / "x.ccm").tokens == memory.tokens
    assert made(Concat(n_comp=1)).open(tmp_path / "x.ccm").tokens == memory.tokens  # the same numbers
    with pytest.raises(UserError, match="adapter"):
        made(Concat(n_comp=1), seed=2).open(tmp_path / "x.ccm")
    with pytest.raises(UserError, match="weights"):
        made(Concat(n_comp=1), base(seed=1)).open(tmp_path / "x.ccm")
    other = made(Concat(n_comp=1), seed=2)
    with pytest.raises(InputError, match="memories of one model"):
        Memory.batch([memory, other.memory()])
    with pytest.raises(InputError, match="at least one"):
        Memory.batch([])
    under = lm.under(Full()).memory()
    under.write("I have 23 coins.")
    with pytest.raises(InputError, match="under another scheme"):
        lm.generate("q", memory=under)
    with pytest.raises(InputError, match="slides a window over positions"):
        tiny_lm("mistral", Concat()).under(KeyNorm())


def test_rows_that_begin_and_rows_that_go_on() -> None:
    """Of a template with a head (BOS, a system prompt), only rows that hold nothing get it."""
    words = toys.tokenizer()
    words.bos_token = "<|system|>"
    words.chat_template = "{{ bos_token }}" + toys.TEMPLATE
    lm = CompressedLM(base(), words, Concat(n_comp=1), lora=LoraConfig(**LORA))
    empty, begun, alone = lm.memory(), lm.memory(), lm.memory()
    begun.write("abc")
    both = Memory.batch([empty, begun])
    both.write("xyz")
    alone.write("xyz")
    begun.write("xyz")
    assert both.raw == [alone.raw[0], begun.raw[0]] == [6, 6 + 4]
    assert torch.allclose(both.read("q"), torch.cat([alone.read("q"), begun.read("q")]), atol=1e-5)
    with pytest.raises(InputError, match="pick them apart"):
        Memory.batch([lm.memory(), begun]).read("q")


# ---- copies -------------------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_memory_is_a_fork() -> None:
    lm = made(Concat(n_comp=1))
    memory = lm.memory()
    memory.write("abc")
    other = copy.deepcopy(memory)
    assert other.lm is lm and torch.equal(other.read("q"), memory.fork().read("q")) and other.tokens != memory.tokens


def test_a_model_goes_to_another_process(tmp_path: Path) -> None:
    """As with workers that are spawned: nothing of this process is there."""
    lm = made(Concat(n_comp=1))
    (tmp_path / "lm.pkl").write_bytes(pickle.dumps(lm))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).generate('a+b', max_new_tokens=9)[0].ids)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lm.pkl")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(lm.generate("a+b", max_new_tokens=9)[0].ids)


def test_an_encoder_s_memory_keeps_no_graph_and_no_seed_of_others() -> None:
    lm = tiny_lm("t5", Concat(n_comp=2), dtype=torch.float32)
    memory = lm.memory()
    memory.write([2, 3, 4])
    assert not memory.held.layers[0].keys.requires_grad  # type: ignore[attr-defined]
    drawn = []
    torch.manual_seed(1)
    for temperature in (0.0, 1.0, 0.0):
        lm.generate([[5, 6, 7, 1]], max_new_tokens=3, temperature=temperature)  # type: ignore[list-item]
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 3
    twice = [lm.generate([[5, 6, 7, 1]], max_new_tokens=8, temperature=1.0, seed=4)[0].ids for _ in range(2)]  # type: ignore[list-item]
    assert twice[0] == twice[1]


# ---- templates and options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before_end", ["", " ", "\n"])
def test_an_answer_ends_with_the_end_of_turn_and_not_with_a_blank_before_it(before_end: str) -> None:
    """Llama 2's template has a blank there."""
    words = toys.tokenizer()
    words.chat_template = toys.TEMPLATE.replace("<|end|>", before_end + "<|end|>")
    encoder = Encoder(words, Newline())
    assert encoder.stops == {words.eos_token_id} == {encoder.closing}
    *_, last = encoder.segments(Example("How many?", "Two of\nthem."))
    assert last.ids[-1] == words.eos_token_id and words.decode(last.ids[:-1]) == "them."


def test_an_answer_without_an_end_of_turn_ends_with_eos() -> None:
    words = toys.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] + '\n\n' }}{% endfor %}"
    encoder = Encoder(words, Newline())
    assert encoder.stops == {words.eos_token_id}
    *_, last = encoder.segments(Tally().examples("test")[0])
    assert last.ids[-1] == words.eos_token_id


def test_numbers_of_any_kind_are_options() -> None:
    lm = made(Concat(n_comp=1))
    assert Settings.of(temperature=1, max_new_tokens=np.int64(5), stop=None) == Settings(5, 1.0)
    assert Settings.of(stop=["a", "b"]).stop == ("a", "b")
    lm.generate("hi", temperature=1, max_new_tokens=2, pins="prompt")
    for wrong in (
        {"temperature": float("nan")},
        {"temperature": 1e-40},
        {"temperature": float("inf")},
        {"max_new_tokens": True},
        {"stop": ""},
    ):
        with pytest.raises(InputError, match="must be"):
            Settings.of(**wrong)
    with pytest.raises(InputError, match="positions must be one of skip, base, got 'bogus'"):
        CompressedLM(base(), WORDS, Full(), positions="bogus")
    with pytest.raises(InputError, match="at least one row, got 0"):
        lm.memory(0)
