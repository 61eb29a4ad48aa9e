"""A two-layer perceptron on hidden states: a score between 0 and 1 for a token. Made, trained, written to one file, read back.

The file is safetensors; its header says which weights the hidden states came from, so that it is never read with others. Plug-ins that have
a head (`boundary=classifier`, `pins=learned`) derive from `Headed` besides.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gelu, linear

from context_memory.atomic import whole
from context_memory.errors import UserError

FORMAT = "context-memory head 1"


class Head(nn.Module):
    """(..., size) hidden states, standardised -> (...) logits."""

    def __init__(self, size: int, width: int = 256) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(size))
        self.scale = nn.Buffer(torch.ones(size))
        self.layers = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layers((hidden.to(self.mean.dtype) - self.mean) * self.scale)
        return out[..., 0]

    def folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases of both layers, the first with the standardisation in it: what one token is read with."""
        weight, bias, out, shift = self.layers.parameters()
        scaled = weight * self.scale
        return scaled, bias - scaled @ self.mean, out, shift


def fit(
    hidden: Tensor, labels: Tensor, *, epochs: int = 3, lr: float = 5e-5, width: int = 256, batch: int = 64, seed: int = 0,
    weight: Tensor | None = None, after: Callable[[int, Head], None] | None = None,
) -> Head:  # fmt: skip
    """A head that tells (n, size) hidden states with label 1 from those with label 0.

    Binary cross-entropy in which both classes weigh the same, AdamW, every token once an epoch.

    Args:
        weight: (n,) of every token, beside the balance of the classes.
        after: is told the epoch (from 0) and the head.

    Raises:
        ValueError: only one class, from which nothing can be learnt.
    """
    positive, n = float(labels.sum()), len(labels)
    if not 0 < positive < n:
        raise ValueError(f"{n} tokens with {positive:g} boundaries: nothing to tell apart; both kinds are needed.")
    torch.manual_seed(seed)
    head = Head(hidden.shape[1], width).to(hidden.device)
    head.mean.copy_(hidden.mean(0))
    head.scale.copy_(1 / hidden.std(0).clamp(min=1e-6))
    balance = torch.where(labels > 0, n / (2 * positive), n / (2 * (n - positive)))
    balance = balance if weight is None else balance * weight
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr)
    random = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        head.train()
        for rows in torch.randperm(n, generator=random).split(batch):
            loss = binary_cross_entropy_with_logits(head(hidden[rows]), labels[rows].float(), balance[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        head.eval()
        if after is not None:
            after(epoch, head)
    return head.eval()


def save(head: Head, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the head and what it belongs to, whole or not at all."""
    tensors = {name: x.detach().cpu().contiguous() for name, x in head.state_dict().items()}
    with whole(path) as beside:
        save_file(tensors, beside, {"format": FORMAT, "facts": json.dumps(dict(facts))})


def place(out: Path | None, usual: Path) -> Path:
    """Where a head is to be written: `out` if it is given.

    Raises:
        UserError: the report lies beside it as .json, so `out` must end otherwise; or its folder is not there.
    """
    if out is None:
        return usual
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got '{out}'.")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder '{out.parent}'; make it first.")
    return out


def load(path: Path) -> tuple[Head, dict[str, Any]]:
    """The head and what it belongs to.

    Raises:
        UserError: no such file, another format, a damaged file.
    """
    if not path.is_file():
        raise UserError(f"nothing learnt at '{path}'; train it first (ccm boundary train, ccm pins train), or name its file, path=.")
    try:
        with safe_open(path, framework="pt") as f:
            header, tensors = f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}
        if header.get("format") != FORMAT:
            raise UserError(f"'{path}' has format {header.get('format')!r}, this version reads {FORMAT!r}; train it again.")
        width, size = tensors["layers.0.weight"].shape
        head = Head(size, width)
        head.load_state_dict(tensors)
        return head.eval().requires_grad_(False), json.loads(header["facts"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:
        raise UserError(f"'{path}' is another kind of file, or damaged ({e}); get it again, or train it anew.") from e


def digest(path: Path) -> str:
    """sha256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bring_along(plugs: Iterable[object], home: Path, origin: Mapping[str, str]) -> None:
    """Put the heads that an adapter was trained with into its folder, where they are looked for; not those of other hidden states."""
    for plug in plugs:
        if isinstance(plug, Headed) and plug.fits(origin) and plug.file.parent.resolve() != home.resolve():
            with whole(home / plug.file.name) as beside:
                shutil.copyfile(plug.file, beside)


class Headed:
    """A plug-in with a head that lies beside the adapter."""

    needs_hidden: ClassVar[bool] = True
    file_name: ClassVar[str]
    path: str

    @property
    def file(self) -> Path:
        """The head's file."""
        if not self.path:
            raise UserError(f"no adapter is used that {self.file_name} could lie beside; name that file, path=.")
        return Path(self.path) / self.file_name if Path(self.path).is_dir() else Path(self.path)

    @cached_property
    def trained(self) -> tuple[Head, dict[str, Any]]:
        """The head, and what it was trained on."""
        return load(self.file)

    def settle(self, tokenizer: Any) -> Any:
        """The plug-in itself; a file that is not there is told before anything else is done."""
        _ = self.trained
        return self

    def fits(self, origin: Mapping[str, str]) -> bool:
        """Whether it was trained on the weights that hidden states come from (`CompressedLM.origin`)."""
        facts = self.trained[1]
        return (facts["weights"], facts["task"]) == (origin["weights"], origin["task"])

    def check(self, origin: Mapping[str, str]) -> None:
        """Raises UserError unless it `fits`."""
        facts = self.trained[1]
        if not self.fits(origin):
            what = "another task adapter" if facts["weights"] == origin["weights"] else f"'{facts['model']}'"
            train = "train it here (ccm boundary train, ccm pins train)"
            raise UserError(f"'{self.file}' was trained on {what}, got '{origin['model']}'; {train}.")

    def read(self, hidden: Tensor) -> list[float]:
        """The probability of each of the (n, hidden) last hidden states. Asked at every step, so nothing is done twice."""
        if hidden.device not in self._folded:
            self._folded[hidden.device] = tuple(x.to(hidden.device) for x in self.trained[0].folded())
        weight, bias, out, shift = self._folded[hidden.device]
        scores: list[float] = linear(gelu(linear(hidden.to(weight.dtype), weight, bias)), out, shift)[..., 0].sigmoid().tolist()
        return scores

    @cached_property
    def _folded(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}
