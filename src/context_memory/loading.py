"""From names to a model that runs: base, task adapter merged in float32, compression adapter attached. In this order, always.

(Both as active PEFT adapters would make both trainable; merging one of two switches the other off.)
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from context_memory import adapter as folders
from context_memory import joint, plugins, weights
from context_memory.adapter import Base, Card, Task
from context_memory.config import Config
from context_memory.data._licences import UNKNOWN, joined
from context_memory.encoder_decoder import CompressedSeq2Seq
from context_memory.errors import UserError
from context_memory.families.base import Family, family_of
from context_memory.model import CompressedLM
from context_memory.schemes.base import Scheme


def load(
    name: str, adapter: str | Path | None = None, *, scheme: Scheme | None = None, dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa", lora: LoraConfig | None = None, positions: str | None = None, gate: str | None = None,
    device: str | torch.device | None = None, merged: bool = True,
) -> CompressedLM:  # fmt: skip
    """A model by name, with an adapter if one is given.

    A task adapter is merged and leaves a plain model; a compression adapter brings its task adapter, scheme and settings along.

    Args:
        dtype: `auto`: bfloat16 where the device multiplies it natively, else float32.
        scheme: instead of the adapter's (`full` and `nothing` run the same merged base without the adapter).
        lora: attach a fresh adapter, for training.
        merged: False keeps a task adapter apart, to go on training it.

    Raises:
        UserError: no such model or adapter; an adapter of another model; a damaged one; a scheme that does not fit it.
    """
    from transformers import AutoTokenizer

    from context_memory.fetch import get

    folder = get(name)
    family = architecture(name, folder)
    place = None if adapter is None else Path(adapter)
    card = None if place is None else folders.read_card(place)
    task = None if place is None or card is None or not (merged or not card.is_task) else task_of(place, card)
    wanted = numbers(dtype, device)
    base, facts = _base(name, folder, family, torch.float32 if task else wanted)
    for where in {place, task} - {None}:
        folders.check_base(str(where), folders.read_card(where), facts)  # type: ignore[arg-type]
    if task is not None:
        base = merge(base, task)
        cast(base, wanted)
    if device is not None:
        base = base.to(device)
    chosen = scheme or _scheme(card)
    attached = None
    if place is not None and card is not None and lora is None and belongs(place, card, chosen, merged):
        attached, lora = place, LoraConfig.from_pretrained(str(place))
        lora.base_model_name_or_path = None  # PEFT warns where it is not the folder that the model came from; hashes are checked
    of = card if attached is not None else None
    gate = gate or (of.gate if of else "comp" if chosen.n_comp else "all")
    positions = positions or (card.positions if card else "skip")
    try:
        lm = (CompressedLM if family.causal else CompressedSeq2Seq)(
            base, AutoTokenizer.from_pretrained(folder), chosen, lora=lora, gate=gate, positions=positions,
            attn_implementation=attn_implementation,
        )  # fmt: skip
    except (ValueError, LookupError) as e:
        raise UserError(str(e.args[0])) from e
    if attached is not None:
        weights.fill(lm, attached)
    lm.facts, lm.card, lm.home = facts, card, place
    lm.task = None if task is None else (task, folders.sha256(task / folders.LORA))
    return lm.eval()


def accelerator() -> str | None:
    """The GPU of this process, where there is one: what the command line runs on."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else None


def numbers(dtype: str | torch.dtype, device: str | torch.device | None = None) -> torch.dtype:
    """The dtype to load weights in; `auto` is bfloat16, but float32 on CPUs that only emulate bfloat16 (several times slower).

    Raises:
        UserError: no floating-point dtype of torch.
    """
    if dtype == "auto":
        cpu = torch.cpu.get_capabilities()
        native = cpu.get("avx512_bf16") or cpu.get("amx_bf16") or cpu.get("architecture") != "x86_64"
        return torch.bfloat16 if native or torch.device(device or "cpu").type != "cpu" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"model.dtype must be auto, bfloat16, float16 or float32, got '{dtype}'.")
    return found


def _base(name: str, folder: Path, family: Family, dtype: torch.dtype) -> tuple[Any, Base]:
    """The plain model, and which one it is."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        base = (AutoModelForCausalLM if family.causal else AutoModelForSeq2SeqLM).from_pretrained(folder, dtype=dtype)
    finally:
        if shown:
            logging.enable_progress_bar()
    return base, folders.describe(name, folder, base.config)


def belongs(adapter: Path, card: Card, scheme: Scheme, merged: bool) -> bool:
    """Whether the adapter is to be attached for this scheme.

    Raises:
        UserError: a number of comp tokens that it was not trained with.
    """
    if card.is_task:
        return not merged
    if not scheme.n_comp and scheme.name != card.scheme["name"]:
        return False
    if scheme.n_comp not in card.n_comp:
        have = " or ".join(map(str, card.n_comp))
        raise UserError(f"adapter '{adapter}' has {have} comp token(s), the scheme {scheme.n_comp}; use scheme.n_comp={have}.")
    return True


def merge(base: nn.Module, task: Path) -> nn.Module:
    """Fold an ordinary LoRA into the weights.

    Raises:
        UserError: the base is quantized, and the sum would be rounded to its grid.
    """
    if getattr(base, "is_quantized", False) or getattr(base, "hf_quantizer", None) is not None:
        raise UserError(f"task adapter '{task}' cannot be merged into a quantized model; load the model in bfloat16 or float32.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5.23 reads an old name of its own
        return PeftModel.from_pretrained(base, str(task)).merge_and_unload()


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the parameters, once. Not `.to(dtype)`: that would round the rotary frequencies too."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.config.dtype = dtype


def build(config: Config) -> CompressedLM:
    """The model that a configuration trains: the base (with its task adapter merged) and an adapter, fresh or gone on with.

    `model.adapter` names a task adapter to build on, or an adapter of the same kind to go on with; a fresh adapter begins with the
    weights of `model.start`, whatever task adapter those were trained on. With `model.joint` the task adapter is trained as well.

    Raises:
        UserError: as `load`; a target that the model has not; a start that does not fit.
    """
    m, scheme = config.model, config.make("scheme")
    card = folders.read_card(m.adapter) if m.adapter else None
    if card is not None and not card.is_task and scheme.name == "full":
        raise UserError(
            f"scheme=full trains a task adapter, and model.adapter='{m.adapter}' is one of scheme '{card.scheme['name']}', which would be "
            "lost; name its task adapter, or none."
        )
    goes_on = card is not None and card.is_task == (scheme.name == "full") and not m.joint
    lora = LoraConfig(
        r=m.lora_r, lora_alpha=m.lora_alpha, lora_dropout=m.lora_dropout, target_modules=targets(config), task_type="CAUSAL_LM"
    )  # fmt: skip
    if m.start and goes_on:
        raise UserError(f"model.start is for a fresh adapter, and model.adapter='{m.adapter}' is one to go on with; name one of the two.")
    torch.manual_seed(config.training.seed)
    try:
        lm = load(
            m.name, None if m.joint else m.adapter, scheme=scheme, lora=None if goes_on else lora, positions=m.positions,
            gate=config.gate(), dtype=m.dtype, attn_implementation=m.attn_implementation, device=accelerator(), merged=not goes_on,
        )  # fmt: skip
    except ValueError as e:  # PEFT: a target that the model has not
        raise UserError(f"model.targets={m.targets}: {e}") from e
    if m.joint:
        joint.attach(lm, replace(lora, target_modules=targets(config, "all")), m.adapter)
    if m.start:
        weights.begin(lm, m.start)
    for key, p in lm.named_parameters():
        p.requires_grad_(("lora_" in key or key.startswith("comp.")) and p.numel() > 0)
    return lm


def targets(config: Config, auto: str = "") -> list[str]:
    """The modules that get LoRA; `auto` is what that setting stands for, if not what the scheme says."""
    from context_memory.fetch import get

    wanted = config.model.targets
    if wanted == "auto":
        wanted = auto or ("all" if not config.scheme.get("n_comp") else "attention")
    if wanted not in ("all", "attention"):
        return [name.strip() for name in wanted.split(",")]
    family = architecture(config.model.name, get(config.model.name))
    return list(family.all_linear if wanted == "all" else family.targets)


def architecture(name: str, folder: Path) -> Family:
    """The family of the model in a folder, before its weights are read.

    Raises:
        UserError: transformers does not know the architecture, or we have no file for it.
    """
    from transformers import AutoConfig

    try:
        return family_of(AutoConfig.from_pretrained(folder).model_type)
    except (LookupError, ValueError) as e:  # transformers': an unknown `model_type` or none, with advice on installing below
        raise UserError(f"model '{name}': {str(e.args[0]).strip().partition(chr(10))[0]}") from e


def card_of(lm: CompressedLM, config: Config, place: Path) -> Card:
    """The card of an adapter that is to be saved at `place`."""
    base, task = lm.facts, None
    assert base is not None, "a model that nobody loaded by name has no card"
    if lm.task is not None:
        path, digest = lm.task
        task = Task(os.path.relpath(path.resolve(), place.resolve()), digest)
    tree = config.to_dict()
    tree["model"] = {**tree["model"], "name": base.name, "adapter": task and task.path, "start": None, "joint": False}
    tree["data"] = {k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v for k, v in tree["data"].items()}
    # What was learnt is looked for beside the adapter.
    tree["boundary"] = boundary = {k: v for k, v in config.boundary.items() if k != "path"}
    tree["pins"] = pins = {name: {k: v for k, v in s.items() if k != "path"} for name, s in config.pins.items()}
    tree |= {"output": "result", "run_id": None, "called": None}  # where it was trained means nothing elsewhere
    return Card(base, task, config.scheme, lm.positions, lm.gate, boundary, pins, tree, licence=licence_of(config))


def licence_of(config: Config) -> str:
    """What the data of a training leave its adapter, those of the adapters that it goes on from or begins with included."""
    before = [folders.read_card(a).licence or UNKNOWN for a in (config.model.adapter, config.model.start) if a]
    return joined(*before, config.dataset().licence)


def _scheme(card: Card | None) -> Scheme:
    if card is None or card.is_task:
        return plugins.make("schemes", "full")  # type: ignore[return-value]
    return Config(scheme=card.scheme).make("scheme")


def task_of(adapter: Path, card: Card) -> Path | None:
    """The folder of the task adapter to merge: this one, or the one that its card names, checked against the card.

    It is looked for where the card says, and beside the adapter (folders that are shipped together are moved together).
    """
    if card.is_task:
        return adapter
    if card.task is None:
        return None
    told = Path(os.path.normpath(adapter / card.task.path))
    there = [p for p in (told, adapter.parent / told.name) if (p / folders.LORA).is_file()]
    if not there:
        raise UserError(
            f"adapter '{adapter}' was trained on top of the task adapter '{card.task.path}', which is not there; "
            f"put it at '{told}' or beside the adapter."
        )
    hashes = {p: folders.sha256(p / folders.LORA) for p in there}
    for path, got in hashes.items():
        if got == card.task.sha256:
            return path
    raise UserError(
        f"adapter '{adapter}' was trained on top of another task adapter than the one at '{there[0]}' "
        f"(sha256 {hashes[there[0]][:12]}, expected {card.task.sha256[:12]})."
    )
