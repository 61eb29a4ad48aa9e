"""Overrides and recipes -> `Config`, through Hydra's compose API. A person's slip is a `UserError` that says what there is.

Only the plug-ins that are chosen are imported: a broken or optional one harms nobody else.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, field, make_dataclass
from pathlib import Path
from typing import Any

from context_memory import plugins
from context_memory.config import FOLDERS, PLAIN, Config, DataExtras
from context_memory.errors import UserError
from context_memory.overrides import choices, said

FIRST: dict[str, list[str]] = {"data": ["tally"], "scheme": ["concat"], "boundary": ["newline"], "pins": ["prompt"]}
"""What a group is where nobody chooses."""
CHOICES = {
    "model.dtype": ("auto", "bfloat16", "float32", "float16"),
    "model.attn_implementation": ("sdpa", "eager", "flex_attention", "flash_attention_2"),
    "model.gate": ("auto", "comp", "all"),
    "model.positions": ("skip", "base"),
    "model.prompt": ("keep", "compress"),
    "training.save_dtype": ("float32", "float16", "bfloat16"),
    "training.loss": ("ce", "distill"),
    "training.schedule": ("cosine", "linear", "constant", "constant_with_warmup"),
    "evaluation.split": ("train", "validation", "test", "all"),
}
AT_LEAST: dict[str, float] = {
    "model.lora_r": 1, "training.max_steps": 1, "training.tokens_per_batch": 1, "training.batch_size": 1,
    "training.accumulate": 1, "training.max_tokens": 2, "training.tokens_per_row": 2, "training.eval_steps": 1,
    "training.save_steps": 1, "training.log_steps": 1, "training.lr": 0, "training.warmup": 0, "training.patience": 0,
    "training.eval_samples": 0, "training.epochs": 0, "generation.max_new_tokens": 1, "evaluation.batch_size": 1,
    "data.train_ratio": 0, "data.max_train_samples": 1, "data.max_eval_samples": 0,
    "data.problems": 1, "evaluation.max_samples": 1, "training.seed": 0, "training.threads": 1, "generation.seed": 0,
    "model.lora_alpha": 1, "model.lora_dropout": 0, "training.clip": 0, "training.weight_decay": 0, "training.max_minutes": 0,
}  # fmt: skip
AT_MOST: dict[str, float] = {
    "training.warmup": 1, "data.train_ratio": 1, "training.seed": 2**32 - 1, "generation.seed": 2**32 - 1, "model.lora_dropout": 0.95,
}  # fmt: skip


def load(overrides: Sequence[str] = (), recipe: str | Path | None = None) -> Config:
    """Defaults, then the recipe, then the overrides.

    Raises:
        UserError: an unknown key, value, plug-in or recipe; the message names it and says what there is.
    """
    every = said(overrides, recipe)
    chosen = choices(every)
    for group, names in chosen.items():
        if group != "pins" and len(names) != 1:
            got = ", ".join(names) or "none"
            raise UserError(f"{group}= takes one name, got {got}; for a row of each: ccm evaluate --sweep {group}=a,b.")
    tree = _compose(every, {**FIRST, **chosen})
    config = Config.from_dict(tree)
    _check(config)
    return config


def _compose(overrides: Sequence[str], groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """The tree as plain containers, through Hydra's compose API: no change of directory, no global state left behind."""
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    store = ConfigStore.instance()
    for group, names in groups.items():
        for name in names:
            package = f"pins.{name}" if group == "pins" else group
            store.store(group=group, name=name, node=_node(group, name), package=package)
    single = [{group: names[0]} for group, names in groups.items() if group != "pins" and names]
    root = {"defaults": [*single, {"pins": list(groups["pins"])}, "_self_"], "pins": {}, **_statics()}
    store.store(name="ccm", node=root)
    settings = [o for o in overrides if o.partition("=")[0] not in FOLDERS]
    try:
        with initialize(version_base=None, config_path=None):
            known = compose(config_name="ccm")
            for override in settings:
                _known(override, OmegaConf.to_container(known))
            # A mapping's keys are not known beforehand, and Hydra wants to be told so (++).
            marked = [f"++{o}" if o.partition("=")[2].startswith("{") else o for o in settings]
            return OmegaConf.to_container(compose(config_name="ccm", overrides=marked), resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(_explain(e, settings)) from e


def _statics() -> dict[str, Any]:
    return {
        f.name: (f.default if f.default is not MISSING else PLAIN[f.name]()) for f in dataclasses.fields(Config) if f.name not in FOLDERS
    }


def _node(group: str, name: str) -> Any:
    """The structured config of a plug-in: its dataclass fields, and its name.

    Raises:
        UserError: no such plug-in, or one that cannot be imported.
    """
    try:
        kind = plugins.find(FOLDERS[group], name)
    except LookupError as e:
        raise UserError(f"{group}={name}: {e.args[0]}") from e
    except ImportError as e:
        raise UserError(f"{group}={name} needs a package that is not installed: {e}.") from e
    hints = typing.get_type_hints(kind)
    fields = [(f.name, hints[f.name], f) for f in dataclasses.fields(kind)]
    extras = [(f.name, typing.get_type_hints(DataExtras)[f.name], f) for f in dataclasses.fields(DataExtras)] if group == "data" else []
    own = {f[0] for f in fields}
    table: list[Any] = [] if group == "pins" else [("name", str, field(default=name))]
    for key, hint, f in [*fields, *(x for x in extras if x[0] not in own)]:
        if f.default_factory is not MISSING:
            table.append((key, hint, field(default_factory=f.default_factory)))
        else:
            table.append((key, _simple(hint), field(default="???" if f.default is MISSING else f.default)))
    return make_dataclass(f"{group}_{name}", table)()


def _simple(hint: Any) -> Any:
    """The type as Hydra can check it; Any where it cannot."""
    simple = (int, float, str, bool, int | None, float | None, str | None, bool | None)
    return hint if hint in simple else Any


def _known(override: str, tree: Any) -> None:
    """Raises UserError unless the dotted key is in the tree, and a mapping is given where there is one."""
    key, _, value = override.partition("=")
    at, path = tree, ""
    for part in key.lstrip("+~").split("."):
        if not isinstance(at, dict) or part not in at:
            names = sorted(at) if isinstance(at, dict) else []
            close = difflib.get_close_matches(part, names, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            where = f"under '{path}'" if path else "at the top"
            if path in FOLDERS and "name" in at:
                where = f"under '{path}={at['name']}'"
                hint = hint or _whose(path, part)
            if path == "pins":
                hint = f" Choose it first: pins=[{','.join([*names, part])}]."
            raise UserError(f"no setting '{key}';{hint} Have {where}: {', '.join(names) or 'nothing'}.")
        at, path = at[part], f"{path}.{part}".lstrip(".")
    if isinstance(at, dict) and at and not value.startswith("{"):
        one_by_one = f"Set them one by one: {', '.join(at)}."
        hint = "Name the rules that are to be there: pins=[prompt,numbers]." if key.startswith("pins.") else one_by_one
        raise UserError(f"{override}: '{key}' stands for settings, not for a value. {hint}")


def _whose(group: str, setting: str) -> str:
    """Which other plug-ins of the group have the setting; one that cannot be imported has none."""
    found = []
    for name in plugins.keys(FOLDERS[group]):
        with suppress(ImportError, LookupError):
            kind = plugins.find(FOLDERS[group], name)
            found += [f"{group}={name}"] if setting in {f.name for f in dataclasses.fields(kind)} else []
    return f" It is one of {' or '.join(found)}; choose that first." if found else ""


def _explain(error: Exception, settings: Sequence[str]) -> str:
    """Hydra's message in one line, with the override that it is about."""
    cause = error.__cause__ or error
    text = str(cause).split("\n    full_key")[0].splitlines()[0]
    key = getattr(cause, "full_key", None)
    guilty = next((s for s in settings if key and s.startswith(f"{key}=")), None)
    return f"{guilty or 'the overrides are not right'}: {text}"


def _check(config: Config) -> None:
    """Raises UserError for a value that is not among the choices or too small."""
    tree = config.to_dict()
    for key, allowed in CHOICES.items():
        group, name = key.split(".")
        if (value := tree[group][name]) not in allowed:
            raise UserError(f"{key} must be one of {', '.join(allowed)}; got '{value}'.")
    for key, least in AT_LEAST.items():
        group, name = key.split(".")
        if (value := tree[group].get(name)) is not None and not value >= least:
            raise UserError(f"{key} must be at least {least:g}, got {value:g}.")
    for key, most in AT_MOST.items():
        group, name = key.split(".")
        if (value := tree[group].get(name)) is not None and value > most:
            raise UserError(f"{key} must be at most {most:g}{', a share,' if most == 1 else ','} got {value:g}.")
    if config.run_id is not None and (config.run_id in ("", ".") or ".." in Path(config.run_id).parts or Path(config.run_id).is_absolute()):
        raise UserError(f"run_id='{config.run_id}' would not name a folder under {config.output}; give a name, as in run_id=first.")
    for group in FOLDERS:
        config.make(group)
    if config.gate() == "comp" and not config.scheme.get("n_comp"):
        raise UserError(f"model.gate=comp acts at comp tokens and scheme '{config.scheme['name']}' has none; use model.gate=all.")
