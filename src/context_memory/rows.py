"""The rows of one table: which adapter and scheme each is, and running them one after the other through `evaluate`.

`full` and `nothing` run the model that the adapter was trained on (its task adapter merged, no comp tokens), so a table measures
the memory and not the task. An adapter brings its configuration along (scheme, boundary, pins, data); what is said on the command
line comes before it.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from context_memory import adapter as folders
from context_memory import compose, output, plugins
from context_memory.config import FOLDERS, Config
from context_memory.depths import at_depths
from context_memory.errors import UserError
from context_memory.evaluate import Settings, evaluate
from context_memory.head import Headed
from context_memory.loading import accelerator, belongs, load
from context_memory.model import CompressedLM
from context_memory.overrides import adapter_of, axis, choices, said, written
from context_memory.records import Record, read
from context_memory.schemes.base import Scheme
from context_memory.text import Example

ENDS = ("full", "nothing")
"""The schemes that have nothing to train, upper and lower bound of every table."""
BROUGHT = ("name", "positions", "chat", "prompt")
"""Settings of `model` that an adapter brings along."""


OWN = ("model", "scheme", "boundary", "pins")
"""The groups of the configuration in which the rows of one table may differ."""


@dataclass(frozen=True)
class Row:
    """One line of a table. `config.model.adapter` and `config.scheme` are this row's."""

    name: str
    config: Config
    note: str = ""
    """Anything to be said beside the name, such as the steps that were trained."""


def brought(adapter: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The configuration that an adapter brings along, as overrides: all but what belongs to plug-ins that another takes the place of."""
    tree = folders.read_card(adapter).config
    chosen = choices(overrides)
    out = [f"model.{k}={written(tree['model'][k])}" for k in BROUGHT if k in tree.get("model", {})]
    for group in FOLDERS:
        settings = tree.get(group) or {}
        names = chosen.get(group)
        if not settings:
            continue
        if group == "pins":
            out += [f"pins=[{','.join(settings)}]"] if names is None else []
            out += [f"pins.{n}.{k}={written(v)}" for n, s in settings.items() if names is None or n in names for k, v in s.items()]
        elif names in (None, [settings["name"]]):
            out.append(f"{group}={settings['name']}")
            out += [f"{group}.{k}={written(v)}" for k, v in settings.items() if k != "name"]
    return out


def configure(overrides: Sequence[str], recipe: str | None = None, adapter: str | Path | None = None) -> Config:
    """Defaults, what the adapter (`model.adapter`, if it is not given apart) brings along, the recipe, the overrides.

    Raises:
        UserError: see `compose.load`; no such adapter.
    """
    every = said(overrides, recipe)
    if adapter is not None and (other := adapter_of(list(overrides))) not in (None, str(adapter)):
        raise UserError(f"two adapters are named, '{adapter}' and model.adapter={other}; name one. (--row adds a row of another.)")
    adapter = adapter or adapter_of(every)
    if adapter is None:
        return compose.load(overrides, recipe)
    rest = [o for o in every if not o.startswith("model.adapter=")]
    return compose.load([*brought(adapter, every), *rest, f"model.adapter={written(str(adapter))}"])


def trained(overrides: Sequence[str], recipe: str | None = None, needed: bool = True) -> Path | None:
    """The adapter that a training of this run_id, or of this recipe, has left; none where the overrides name one or need none.

    Args:
        needed: there has to be one for a run_id too, since nothing else could be meant by it.

    Raises:
        UserError: see `compose.load`; there is none, although it is needed.
    """
    from context_memory.train import run_folder

    asked = recipe or any(o.startswith("run_id=") for o in overrides)
    if not asked or any(o.startswith("model.adapter=") for o in overrides):
        return None
    where = [o for o in overrides if o.startswith(("run_id=", "output="))] if recipe else overrides  # evaluated on other data, perhaps
    config = compose.load(where, recipe)
    place, bare = run_folder(config) / "adapter", any(o in ("scheme=full", "scheme=nothing") for o in overrides)
    if config.run_id and place.is_dir():
        return None if bare and not folders.read_card(place).is_task else place
    if config.run_id and (not bare if recipe else needed):
        what = f"recipe '{recipe}' has left no adapter" if recipe else "there is no adapter"
        raise UserError(f"{what} at '{place}'; train it first (ccm train), or name one, --adapter FOLDER (ccm adapters lists them).")
    return None


def sweep(axes: Sequence[str], overrides: Sequence[str], recipe: str | None, adapter: str | Path | None) -> list[tuple[str, Config]]:
    """A row for every combination of values, `["boundary=newline,rules", "pins=[prompt],[prompt,results]"]`, named after them. A setting
    that a plug-in of the combination lacks is left out of it, as `boundary.tau=0.3,0.6` beside `boundary=newline,classifier`.

    Raises:
        UserError: a setting that all rows of a table share; see also `overrides.axis` and `configure`.
    """
    values = [axis(a) for a in axes]
    if shared := [a for a in axes if a.partition("=")[0].split(".")[0] not in OWN]:
        raise UserError(f"--sweep '{shared[0]}': the rows of a table differ in {', '.join(OWN)} and share all else; evaluate twice.")
    points = dict.fromkeys(tuple(o for o in point if not _lacking(o, point)) for point in itertools.product(*values))
    if idle := [v[0] for v in values if not any(o in point for point in points for o in v)]:
        raise UserError(f"--sweep {idle[0].partition('=')[0]}: no plug-in of the sweep has this setting (ccm settings lists them).")
    return [(_called(point), configure([*overrides, *point], recipe, adapter)) for point in points]


def _lacking(override: str, point: Sequence[str]) -> bool:
    """Whether a setting is one that none of the plug-ins has which the same combination chooses.

    >>> _lacking("boundary.tau=0.3", ["boundary=newline", "boundary.tau=0.3"]), _lacking("boundary.tau=0.3", ["boundary.tau=0.3"])
    (True, False)
    """
    group, _, rest = override.partition("=")[0].partition(".")
    chosen = choices(point).get(group)
    if not rest or chosen is None:
        return False
    if group == "pins":
        return rest.partition(".")[0] not in chosen
    kinds = [plugins.find(FOLDERS[group], name) for name in chosen if name in plugins.keys(FOLDERS[group])]
    return bool(kinds) and not any(rest in {f.name for f in fields(kind)} for kind in kinds)


def _called(point: Sequence[str]) -> str:
    """A combination as a row's name; brackets would be markup in a table.

    >>> _called(["boundary=rules", "pins=[prompt,sink]"])
    'boundary=rules pins=prompt+sink'
    """
    return " ".join(point).replace("[", "").replace("]", "").replace(",", "+")


def rows_of(config: Config, named: Sequence[tuple[str, Config]] = (), ends: bool = True) -> list[Row]:
    """The rows of these names (the configuration itself, if none is given), between its `full` and `nothing`."""
    out = [Row(name, c) for name, c in named or [(config.scheme["name"], config)]]
    if ends:
        # The lower bound keeps the question if the other rows do, and nothing else: other pins are a memory of their own.
        pins = {name: settings for name, settings in config.pins.items() if name == "prompt"}
        full, nothing = (Row(end, replace(config, scheme={"name": end, "n_comp": 0}, pins=pins)) for end in ENDS)
        out = [full, *(r for r in out if r.name not in ENDS), nothing]
    if len({slug(r.name) for r in out}) != len(out):
        names = ", ".join(r.name for r in out)
        raise UserError(f"two rows have one name, or names that make one folder: {names}; name them, as in --row mine=FOLDER.")
    return out


def scheme_of(config: Config) -> Scheme:
    """The scheme of a row that there are weights for.

    Raises:
        UserError: a scheme with comp tokens and no compression adapter, or one with another number of them; see also
            `adapter.read_card`.
    """
    adapter, scheme = config.model.adapter, config.make("scheme")
    card = folders.read_card(adapter) if adapter else None
    if scheme.n_comp and (card is None or card.is_task):
        what = f"'{adapter}' is a task adapter" if card else "no adapter was given"
        raise UserError(
            f"scheme '{scheme.name}' needs a compression adapter and {what}; give one, model.adapter=FOLDER, "
            f"or train one: ccm train scheme={scheme.name}. (Schemes without comp tokens, such as full, need none.)"
        )
    if adapter and card:
        belongs(Path(adapter), card, scheme, merged=False)
    return scheme


def check(config: Config) -> None:
    """What can be told of a row before a model is loaded.

    Raises:
        UserError: see `scheme_of`; a boundary or pin that has learnt nothing here.
    """
    scheme_of(config)
    for plug in (config.make("boundary"), *config.make("pins")):
        if isinstance(plug, Headed):
            _ = plug.trained


def load_row(config: Config) -> CompressedLM:
    """The model of a row.

    Raises:
        UserError: see `scheme_of` and `loading.load`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second bar within ours
    m, scheme = config.model, scheme_of(config)
    if m.adapter and scheme.n_comp and (learnt := folders.read_card(m.adapter).scheme["name"]) != scheme.name:
        print(f"adapter '{m.adapter}' was trained with scheme={learnt} and runs with {scheme.name}.", file=sys.stderr)
    how: Any = {"dtype": m.dtype, "attn_implementation": m.attn_implementation, "device": accelerator()}
    try:
        return load(m.name, m.adapter, scheme=scheme, positions=m.positions, **how)
    except ValueError as e:
        raise UserError(str(e)) from e


def examples_of(config: Config, depths: Sequence[int] | None = None) -> list[Example]:
    """What is evaluated: the first of a split, at each of the depths if there are any."""
    e = config.evaluation
    found = list(config.examples(e.split, e.max_samples, config.data.get("max_eval_samples")))
    return at_depths(found, depths) if depths else found


def run(
    rows: Sequence[Row], folder: Path, *, fresh: bool = False, progress: Progress | None = None, notes: dict[str, Any] | None = None,
    failed: list[str] | None = None,
) -> list[Record]:  # fmt: skip
    """Evaluate every row on the data of the first one; each has its folder under `folder`.

    Args:
        failed: takes what is wrong with a row, such as a policy that never fires, and the others go on; else it is raised.

    Raises:
        UserError: see `check`, before any row is run, and `evaluate.evaluate`.
    """
    for row in rows:
        check(row.config)
    first = rows[0].config
    e = first.evaluation
    examples, dataset = examples_of(first, e.depths), first.dataset()
    out: list[Record] = []
    for row in rows:
        c, g = row.config, first.generation
        decode = output.Settings(g.max_new_tokens, g.temperature, g.top_p, g.seed)
        settings = Settings(decode, e.batch_size, e.generate, e.likelihood, e.choose, e.recall, e.profile)
        lm = load_row(c)
        encoder = c.encoder(lm.tokenizer)
        said = {"data": first.data, "split": e.split, "seed": g.seed, "note": row.note, **(notes or {})}
        place = folder / slug(row.name)
        try:
            evaluate(lm, encoder, dataset, examples, settings, place, name=row.name, notes=said, fresh=fresh, progress=progress)
            out.append(read(place))
        except UserError as fault:
            if failed is None:
                raise
            failed.append(f"row '{row.name}': {fault}" if len(rows) > 1 else str(fault))
        del lm
        gc.collect()  # a model holds itself through its hooks; the next one should not stand beside it
    return out


def slug(name: str) -> str:
    """A row's name as a folder's.

    >>> slug("just trained (60 steps)")
    'just-trained-60-steps'
    """
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name).split()) or "row"
