"""Attack: quantise the weights of all Linears, which may undo a small change of them.

Round-to-nearest, weights only, symmetric, with a scale for each group of 32 inputs; and the formats
of bitsandbytes and torchao where these are installed, by their own code.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun

CONTROLS = {BEFORE: "the model before the edit, quantised in the same way"}
BITS = (8, 4, 3)
GROUP = 32


def rounded(weight: Any, bits: int) -> Any:
    """A weight [E, D_in] rounded to 2^bits − 1 levels in each group of inputs."""
    import torch

    rows, columns = weight.shape
    # A last group that is not full has zeros, which do not change its scale.
    padded = torch.nn.functional.pad(weight, (0, -columns % GROUP)).reshape(rows, -1, GROUP)
    most = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return ((padded / scale).round() * scale).reshape(rows, -1)[:, :columns]


def nf4(weight: Any) -> Any:
    """A weight in bitsandbytes' 4-bit format nf4 and back."""
    with quiet():
        from bitsandbytes import functional

        coded, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4")
        return functional.dequantize_4bit(coded, state).to(weight.dtype)


def int8(weight: Any) -> Any:
    """A weight [E, D_in] in torchao's 8-bit format for weights and back."""
    import torch

    with quiet():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        like = {"dtype": weight.dtype, "device": weight.device}
        linear = torch.nn.Linear(*weight.shape[::-1], bias=False, **like)
        linear.weight.data = weight.clone()
        quantize_(linear, Int8WeightOnlyConfig())
        return linear.weight.dequantize().to(weight.dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the packages log about kernels that this machine does not need."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(earlier)


# (package, function) by the name in attacks.json.
FORMATS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bitsandbytes nf4": ("bitsandbytes", nf4),
    "torchao int8": ("torchao", int8),
}


def trials(run: AttackedRun) -> Iterator[Trial]:
    ways: list[tuple[dict[str, Any], Callable[[Any], Any]]] = [
        ({"bits": bits}, partial(rounded, bits=bits)) for bits in BITS
    ]
    ways += [
        ({"format": name}, code) for name, (package, code) in FORMATS.items() if find_spec(package)
    ]
    seed = run.seeds[0]
    for setting, way in ways:
        for subject in (EDITED, BEFORE):
            yield Trial(subject, setting, seed, partial(measure, run, way, subject, seed))


def measure(run: AttackedRun, way: Callable[[Any], Any], subject: str, seed: int) -> list[Row]:
    model = run.model
    with model.of(subject), model.changed_linears(way):
        return [dict(rates(model.vlm, run.naming, run.split(seed)[1]))]


def left_out(run: AttackedRun) -> list[str]:
    """The formats whose package is not installed."""
    return [
        f"{name}: not tried: {package} is not installed"
        for name, (package, _) in FORMATS.items()
        if not find_spec(package)
    ]


ATTACK = Attack(
    "quantisation",
    "Rounds the weights of all Linears to 8, 4 and 3 bits (round to nearest, groups of 32), and to "
    "the formats of bitsandbytes and torchao where these are installed.",
    dict.fromkeys(("small", "full"), "every format, once"),
    CONTROLS,
    True,
    trials,
    left_out,
)
