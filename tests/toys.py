"""A whole model in a folder, small enough for a test: a random llama and a tokenizer of single characters, with chat roles."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from context_memory.encode import Encoder
from context_memory.pins.base import Piece, Pin

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; three special ones for the roles and one that ends a turn."""
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    letters = sorted(set(string.printable) - set("\r\x0b\x0c"))
    vocabulary = {token: i for i, token in enumerate([*special, *letters, "\N{REPLACEMENT CHARACTER}"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="\N{REPLACEMENT CHARACTER}"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    out = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    out.add_special_tokens({"additional_special_tokens": special[1:]})
    out.chat_template = TEMPLATE
    return out


def folder(at: Path, seed: int = 0) -> Path:
    """Write the model and its tokenizer to `at`."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=0.3)  # so that random answers differ from each other
    model.save_pretrained(at)
    words.save_pretrained(at)
    return at


def adapters(at: Path, model: Path, scheme: str = "concat", data: str = "tally", seed: int = 1, **settings: object) -> tuple[Path, Path]:
    """A task adapter of random numbers and a compression adapter on top of it, which has another `seed`: the folders of both."""
    from context_memory import adapter, compose, loading

    places = at / "task", at / scheme
    small = [f"model={model}", "model.dtype=float32", "model.lora_r=2"]
    common = [*small, f"data={data}", *(f"{k}={v}" for k, v in settings.items())]
    for place, draw, extra in zip(places, (1, seed), (["scheme=full"], [f"scheme={scheme}", f"model.adapter={places[0]}"])):
        config = compose.load([*common, *extra])
        lm = loading.build(config)
        torch.manual_seed(draw)
        with torch.no_grad():
            for name, p in lm.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        adapter.save(lm, place, loading.card_of(lm, config, place))
    return places


class Letters:
    """A tokenizer without text: token 63 ends an answer."""

    eos_token_id, eos_token, bos_token, bos_token_id, chat_template = 63, "", "", None, None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 63 for c in text]}

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(32 + i) for i in ids)


class Endless(Encoder):
    """No token ends an answer."""

    stops = frozenset()  # type: ignore[assignment]


class Thirds(Pin):
    """Keeps tokens whose id is a multiple of 3."""

    budget = 2

    def chooses(self, piece: Piece) -> list[int]:
        return [i for i, token in enumerate(piece.ids) if token % 3 == 0]
