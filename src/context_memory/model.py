"""CompressedLM: a frozen Hugging Face model, a scheme, and the small adapter that makes it remember."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from context_memory import attention, memory_file, memory_merge, mixing, plugins, wiring
from context_memory.boundaries.base import Boundary
from context_memory.encode import Encoder
from context_memory.errors import InputError
from context_memory.families.base import Family, fitting
from context_memory.gate import Gate
from context_memory.generate import Decoder, generate
from context_memory.memory import Memory
from context_memory.mixing import Mix
from context_memory.output import Output, Settings
from context_memory.pins.base import Pin
from context_memory.plan import IGNORE, PAD, POSITIONS, Plan, Tokens, visible
from context_memory.rates import LearnedRate
from context_memory.schemes.base import Scheme
from context_memory.text import Segment
from context_memory.tokens import CompEmbedding

if TYPE_CHECKING:
    from context_memory.adapter import Base, Card
    from context_memory.session import Session

GATES = ("comp", "all")


class CompressedLM(nn.Module):
    """A causal language model with a compressed memory.

    Args:
        base: a transformers causal LM; its weights are frozen. "The frozen model" of every law.
        tokenizer: its tokenizer (None for models without text, in tests).
        scheme: what is kept of a segment.
        lora: PEFT's configuration of the adapter; None for no adapter (`full` and `nothing` need none).
        positions: `skip` or `base` (see `plan.layout`).
        gate: `comp`, LoRA on comp tokens only, or `all`, on every token (an ordinary LoRA).

    Raises:
        UnknownFamily: (a LookupError) an architecture that has no family file.
        ValueError: a setting that contradicts another.
    """

    facts: Base | None = None
    """Which base weights these are; set by whoever loads them."""
    card: Card | None = None
    """What the adapter folder said, if it came from one,"""
    home: Path | None = None
    """and where it stands."""
    task: tuple[Path, str] | None = None
    """Folder and hash of the task adapter that is merged into the base."""
    joint = False
    """Whether a task adapter acts beside the compression adapter, to be trained with it (`joint.py`)."""
    attend = staticmethod(attention.use)

    def __init__(
        self, base: Any, tokenizer: Any, scheme: Scheme, *, lora: LoraConfig | None = None, positions: str = "skip",
        gate: str = "comp", attn_implementation: str = "sdpa",
    ) -> None:  # fmt: skip
        super().__init__()
        wiring.check(base)
        for what, given, known in (("gate", gate, GATES), ("positions", positions, POSITIONS)):
            if given not in known:
                raise InputError(f"{what} must be one of {', '.join(known)}, got {given!r}.")
        self.family: Family = fitting(base.config, attn_implementation)
        scheme.check(self.family.windowed(base.config))
        self.tokenizer, self.scheme, self.positions, self.gate = tokenizer, scheme, positions, gate
        base.requires_grad_(False)
        self.attend(base, attn_implementation, scheme.mixes)
        self.base = base
        self.comp = CompEmbedding(scheme.n_comp, base.get_input_embeddings().weight.detach(), self.family.scale(base))
        if scheme.learned:
            self.comp.rate = LearnedRate(self.n_layers, base.config.num_key_value_heads, scheme.n_comp, self._head_size)
        self.peft: PeftModel | None = None
        self._wiring: wiring.Wiring | None = None
        trains = base.training
        if lora is not None:
            self._attach(lora)
        self.train(trains)  # new modules, a LoRA's dropout among them, go with the model

    def _attach(self, lora: LoraConfig) -> None:
        peft, self._wiring = wiring.attach(self.base, lora, self.family.layers(self.base), self.family.seat)
        object.__setattr__(self, "peft", peft)  # not a submodule: the LoRA weights live in `base` already

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def origin(self) -> dict[str, str]:
        """Which weights its hidden states come from: what a head that was trained on them belongs to."""
        name, weights = (self.facts.name, self.facts.weights) if self.facts is not None else ("", "")
        return {"model": name, "weights": weights, "task": self.task[1] if self.task is not None else ""}

    @property
    def n_layers(self) -> int:
        return int(self.base.config.num_hidden_layers)

    @property
    def max_positions(self) -> int:
        return int(self.base.config.max_position_embeddings)

    @property
    def kv_bytes(self) -> int:
        """Bytes of one entry over all layers."""
        return 2 * self.n_layers * self.base.config.num_key_value_heads * self._head_size * self.base.dtype.itemsize

    @property
    def _head_size(self) -> int:
        config = self.base.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def hidden(self, plan: Plan, memory: Memory | None = None, used: int = 0, adapter: bool = True) -> Tensor:
        """(b, n, hidden) last hidden states of the plan's tokens, after the first `used` columns of a memory if one is given.

        `adapter=False` is the frozen model, whatever the gate.
        """
        if memory is not None:
            return self._pass(plan, memory, memory.seen(used), memory_merge.mix(memory, plan, used), adapter)
        if not self.scheme.static:
            raise InputError(f"scheme '{self.scheme.name}' chooses by the keys and has no mask for one pass; run it on a memory.")
        mix, frozen = mixing.mix(plan, self.scheme, self.comp.rate), self._frozen(plan) if adapter else 0
        if not frozen:
            return self._pass(plan, None, plan.tokens, mix, adapter)
        cache, (head, tail) = DynamicCache(), plan.cut(frozen)
        with torch.no_grad():
            before = self._pass(head, cache, head.tokens, None, adapter)
        return torch.cat([before, self._pass(tail, cache, plan.tokens, mix, adapter)], 1)

    def _frozen(self, plan: Plan) -> int:
        """Leading columns that no trained parameter reaches, because no row has a comp token there: training runs them
        forward only. 0 where that is of no use, or layers are run again and would write to a cache twice."""
        if not (self.training and torch.is_grad_enabled() and self.gate == "comp") or self.joint or self.checkpoints:
            return 0
        first = torch.where(plan.tokens.comp, torch.arange(plan.shape[1], device=self.device), plan.shape[1]).amin()
        return int(first) % plan.shape[1]

    @property
    def checkpoints(self) -> bool:
        """Whether layers are run again in the backward pass."""
        return any(getattr(layer, "gradient_checkpointing", False) for layer in self.family.layers(self.base))

    def _pass(self, plan: Plan, cache: Cache | None, keys: Tokens, mix: Mix | None, adapter: bool) -> Tensor:
        """(b, n, hidden): one forward of the plan's tokens, which attend to `keys`: what the cache holds, then themselves."""
        if cache is not None and self.base.training and self.checkpoints:
            raise InputError(
                "a model in training mode with gradient checkpointing drops its cache, and so the memory; call lm.eval() first."
            )
        t = plan.tokens
        embedded = self.family.embed(self.base, plan.ids)
        if has_comp := bool(t.comp.any()):
            embedded = self.comp(embedded, plan)
        comp, lanes = t.comp, self._lanes(plan, cache)
        mask, position_ids = self._mask(plan, keys, cache, embedded.dtype, explicit=lanes is not None)
        extra: dict[str, Any] = {}
        if lanes is not None:
            extra["lanes"] = lanes
            embedded, position_ids, comp = lanes.gather(embedded), lanes.gather(t.position), lanes.gather(comp)
        if self.peft is not None and adapter:
            if self.gate == "all":
                extra["lora_gate"] = Gate(None)
            elif has_comp or self.training or self.joint:
                extra["lora_gate"] = Gate(comp.flatten().nonzero()[:, 0])
        if mix is not None:
            extra["kv_mix"] = mix
        wiring = self._wiring if self._wiring is not None and self._wiring.alone and not torch.is_grad_enabled() else None
        with nullcontext() if wiring is None else wiring.unplugged(extra.pop("lora_gate", None)):
            out = self.family.decoder(self.base)(
                inputs_embeds=embedded, attention_mask=mask, position_ids=position_ids, past_key_values=cache,
                use_cache=cache is not None, **extra,
            ).last_hidden_state  # fmt: skip
        return out if lanes is None else lanes.spread(out)

    def _lanes(self, plan: Plan, cache: Cache | None) -> attention.Lanes | None:
        """Where the real tokens sit, if they are to run side by side: after a memory, which knows rows, and with padding between them."""
        if not isinstance(cache, Memory) or attention.implementation_of(self.base) not in attention.SPREADS:
            return None
        real = plan.tokens.kind != PAD
        return None if bool(real.all()) else attention.Lanes.of(real)

    def _mask(self, plan: Plan, keys: Tokens, cache: Cache | None, dtype: torch.dtype, explicit: bool = False) -> tuple[Any, Tensor | None]:
        """The mask in the form that the implementation takes, or None where plain causal attention is what is wanted (and `explicit`
        does not ask for a mask all the same)."""
        t = plan.tokens
        implementation = attention.implementation_of(self.base)
        q, k = t.map(lambda x: x[:, :, None]), keys.map(lambda x: x[:, None, :])
        windowed = self.family.windowed(self.base.config)
        if cache is None and plan.consecutive and not (windowed and bool(t.pin.any())) and not plan.hides(self.scheme):
            return None, None
        mask = visible(self.scheme, q, k)
        n, used = plan.shape[1], keys.kind.shape[1]
        # torch 2.13 makes no C++ of flex_attention without a block mask once the length of the keys varies.
        alone = n == 1 and not (implementation == "flex_attention" and mask.device.type == "cpu")
        if cache is not None and not windowed and not explicit and (alone or implementation == "flash_attention_2"):
            causal = torch.ones(n, used, dtype=torch.bool, device=mask.device).tril(used - n)
            if bool((mask == causal).all()):
                return None, t.position
        forms = {kind: attention.form(m, implementation, dtype) for kind, m in self.family.masks(mask, q, k, self.base.config).items()}
        return forms.get(None, forms), t.position

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary)."""
        return self.family.head(self.base, hidden)

    def labelled(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """(N, vocabulary) logits and (N,) labels of the positions that have a label: no other logits are computed."""
        where = plan.labels != IGNORE
        return self.logits(self.hidden(plan)[where]), plan.labels[where]

    def forward(self, plan: Plan) -> Tensor:
        """(b, n, vocabulary) logits in one pass."""
        return self.logits(self.hidden(plan))

    @classmethod
    def load(cls, name: str, adapter: str | Path | None = None, **settings: Any) -> CompressedLM:
        """A model by name (known name, hub id, folder or .gguf file) with an adapter folder; see `loading.load`."""
        from context_memory.loading import load

        return load(name, adapter, **settings)

    @cached_property
    def encoder(self) -> Encoder:
        """How text becomes segments: boundary, pins and roles as the adapter was trained, or newlines and a pinned prompt."""
        from context_memory.config import Config

        config = Config.from_dict(self.card.config) if self.card is not None else None
        if config is None or not config.boundary:
            newline, prompt = plugins.make("boundaries", "newline"), plugins.make("pins", "prompt")
            return Encoder(self.tokenizer, newline, [prompt])  # type: ignore[arg-type, list-item]
        config.model.adapter = str(self.home) if self.home else None
        return config.encoder(self.tokenizer)

    def under(self, scheme: Scheme) -> CompressedLM:
        """The same weights under a scheme that has no comp tokens, such as `full`. Nothing is copied."""
        if scheme.n_comp:
            raise InputError(f"scheme '{scheme.name}' has comp tokens, which an adapter is trained for; load the model with it instead.")
        scheme.check(self.family.windowed(self.base.config))
        other = copy.copy(self)
        other.scheme = scheme
        return other

    def memory(self, rows: int = 1) -> Memory:
        """An empty memory."""
        return Memory(self, rows)

    def open(self, path: str | Path) -> Memory:
        """The memory that `Memory.save` wrote; UserError if it belongs to another model, adapter, tokenizer or scheme."""
        return memory_file.read(self, path)[0]

    def generate(
        self, prompts: str | Sequence[str], memory: Memory | None = None, *, boundary: str | Boundary | None = None,
        pins: Sequence[str | Pin] | None = None, **options: Any,
    ) -> list[Output]:  # fmt: skip
        """Answer one prompt or a batch; every row compresses at its own boundaries while it is written.

        Args:
            memory: a memory to go on from, a row a prompt; it is continued (`fork` it first to keep it), with no roles after an answer.
            boundary, pins: instead of the adapter's.
            options: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop`.
        """
        return generate(self, *self._asked(prompts, memory, boundary, pins), Settings.of(**options), memory)

    def stream(self, prompt: str, memory: Memory | None = None, **options: Any) -> Iterator[str]:
        """The pieces of one answer as they come."""
        encoder, prompts = self._asked(prompt, memory, options.pop("boundary", None), options.pop("pins", None))
        yield from Decoder(self, encoder, prompts, Settings.of(**options), memory).pieces()

    def chat(self, memory: Memory | None = None, **options: Any) -> Session:
        """A conversation that is remembered turn by turn, after what `memory` holds; options as of `generate`."""
        from context_memory.session import Session

        return Session(self, memory=memory, settings=Settings.of(**options))

    def _asked(
        self, prompts: str | Sequence[str], memory: Memory | None, boundary: str | Boundary | None, pins: Sequence[str | Pin] | None
    ) -> tuple[Encoder, list[list[Segment]]]:
        encoder = self.encoder
        if boundary is not None or pins is not None:
            policy = plugins.make_beside(self.home, "boundaries", boundary) if isinstance(boundary, str) else boundary or encoder.boundary
            pins = [pins] if isinstance(pins, str) else pins
            rules = encoder.pins if pins is None else [plugins.make_beside(self.home, "pins", p) if isinstance(p, str) else p for p in pins]
            encoder = Encoder(self.tokenizer, policy, rules, chat=encoder.chat, prompt=encoder.question)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if memory is not None and memory.rows != len(texts):
            raise InputError(f"{len(texts)} prompt(s) cannot go on from a memory of {memory.rows} row(s); give a prompt a row.")
        fresh = [memory is None or not raw for raw in (memory.raw if memory is not None else [0] * len(texts))]
        return encoder, [encoder.asked(text, first) for text, first in zip(texts, fresh, strict=True)]
