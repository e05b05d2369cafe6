"""The precisions: what each is called, which Megatron-Bridge preset it is, and which layers it keeps in BF16.

The presets are not equal in what they leave in BF16, and a comparison has to know: the table says it once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from pretraining import packages
from pretraining.errors import UsageError, unknown

# What stands in for FP4 tensor cores on a GPU: this project's kernels, or Transformer Engine's reference quantizer,
# which has neither stochastic rounding nor speed and is there to be compared with.
EMULATORS = ("triton", "reference")


@dataclass(frozen=True)
class Precision:
    """One row of the table."""

    name: str
    preset: str  # the function in `megatron.bridge.training.mixed_precision`
    on_cpu: bool = False  # the CPU runtime has its arithmetic, see `numerics/`
    # Layers the preset itself keeps in BF16 at the start and at the end; a tail of None is "an eighth of the layers, at
    # least one", which is 4 of 32: wholly in NVFP4 training may diverge (arXiv 2509.25149, section 4.1, keeps about
    # 15 % of the linear layers in BF16, most of them the last).
    bf16_head: int = 0
    bf16_tail: int | None = 0
    capabilities: tuple[tuple[int, int], ...] | None = None  # whose tensor cores train in it; None: any from 8.0
    # Further ones, for which Transformer Engine has kernels from `packages.PROBED` on, and nobody is known to have
    # trained with them: a run begins where they pass `selfcheck/probe.py`.
    probed: tuple[tuple[int, int], ...] = ()
    needs: str = "compute capability 8.0 or newer"  # the same in words
    per_tensor: bool = False  # a whole tensor has one scale
    delayed: bool = False  # from earlier iterations' maxima: Megatron has it for all layers, from first step to last
    fp4: bool = False  # the arithmetic is NVFP4's, whose recipe `--nvfp4` changes and which can be emulated
    gather: str = "BF16"  # how the preset stores and gathers linear layers' weights: BF16, or already quantized
    gather_since: tuple[int, ...] = ()  # the first Megatron-Bridge whose preset gathers so; before it BF16
    saved_bytes: float = 2.0  # for the backward pass, an element of a linear layer's input with its share of the scales
    copy_bytes: float = 0.0  # of a weight's quantized copies, both orientations, where it is BF16 itself

    @property
    def quantized(self) -> bool:
        """Whether any layer computes in less than BF16."""
        return self.preset != "bf16_mixed"

    def is_speed_only(self, head: int, tail: int) -> bool:
        """Whether a run that keeps so many layers in BF16 says something of speed alone."""
        return self.bf16_tail is None and head + tail == 0

    def trains_on(self, capability: tuple[int, int], *, emulate: bool = False) -> bool:
        """Whether a GPU of that compute capability trains in it; NVFP4 emulated needs BF16 tensor cores alone."""
        if (emulate and self.fp4) or self.capabilities is None:
            return capability >= _BF16_TENSOR_CORES
        return capability in (*self.capabilities, *self.probed)

    def is_probed(self, capability: tuple[int, int], *, emulate: bool = False) -> bool:
        """Whether it trains there only if the engine is new enough and its kernels pass a probe."""
        return capability in self.probed and not (emulate and self.fp4)


_BF16_TENSOR_CORES = (8, 0)
_BLACKWELL = ((10, 0), (10, 3))
_RUBIN = ((10, 7),)
_NEW_ENGINE = f"with Transformer Engine {packages.dotted(packages.PROBED)} or newer"

_FP8 = Precision(
    "fp8",
    "bf16_with_fp8_current_scaling_mixed",
    bf16_head=1,
    bf16_tail=1,
    capabilities=((8, 9), (9, 0), *_BLACKWELL, (12, 0), (12, 1)),
    probed=_RUBIN,
    needs="FP8 tensor cores: compute capability 8.9 or newer",
    per_tensor=True,
    gather="FP8",
    saved_bytes=1.0,
    copy_bytes=2.0,
)

PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision("bf16", "bf16_mixed", on_cpu=True),
        _FP8,
        # The same but for where its scales come from, and no layer of it in BF16.
        replace(
            _FP8,
            name="fp8_delayed",
            preset="bf16_with_fp8_delayed_scaling_mixed",
            bf16_head=0,
            bf16_tail=0,
            delayed=True,
        ),
        Precision(
            "fp8_blockwise",
            "bf16_with_fp8_subchannel_scaling_mixed",
            capabilities=((9, 0),),
            needs="a Hopper GPU: compute capability 9.0",
            saved_bytes=1 + 4 / 128,
            copy_bytes=2.0,
        ),
        Precision(
            "mxfp8",
            "bf16_with_mxfp8_mixed",
            capabilities=_BLACKWELL,
            probed=_RUBIN,
            needs=f"a Blackwell data-centre GPU: compute capability 10.0 or 10.3, or 10.7 {_NEW_ENGINE}",
            gather="FP8",
            saved_bytes=1 + 1 / 32,
            copy_bytes=2 * (1 + 1 / 32),
        ),
        # An older Transformer Engine may call NVFP4 available on 12.0 and 12.1 (RTX PRO, GB10) while training in it
        # fails or stochastic rounding returns zeros (TransformerEngine issues 2255, 2956, 3217).
        Precision(
            "nvfp4",
            "bf16_with_nvfp4_mixed",
            on_cpu=True,
            bf16_tail=None,
            capabilities=_BLACKWELL,
            probed=(*_RUBIN, (12, 0), (12, 1)),
            needs="FP4 tensor cores: compute capability 10.0 or 10.3 (B200, GB200, B300, GB300), or 10.7, 12.0 or 12.1 "
            f"{_NEW_ENGINE}",
            fp4=True,
            gather="FP4",
            gather_since=(0, 4, 2),
            saved_bytes=0.5 + 1 / 16,
            copy_bytes=2 * (0.5 + 1 / 16),
        ),
    )
}


def find_precision(name: str) -> Precision:
    """The precision called `name`. Raises UsageError with the nearest name and the whole list."""
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    return PRECISIONS[name]


def default_tail(precision: Precision, num_layers: int) -> int:
    """Layers kept in BF16 at the end of a model of `num_layers` where the user did not say."""
    return max(1, num_layers // 8) if precision.bf16_tail is None else precision.bf16_tail


NEVER = "never"  # in place of a late switch
# Where it may lead: a precision, in both passes, or BF16 in the forward pass alone.
TARGETS = (
    "bf16",
    "forward",
    *(row.name for row in PRECISIONS.values() if row.quantized and not (row.fp4 or row.delayed)),
)
_LATE_SWITCH = rf"(\d{{1,9}}|[01]?\.\d{{1,9}}):({'|'.join(TARGETS)})"


class LateSwitch(NamedTuple):
    """From where on a training goes on in a higher precision (arXiv 2509.25149, appendix D)."""

    at: float | int  # a fraction of the iterations, or how many of them
    to: str  # one of TARGETS; after "forward", gradients are still computed as before

    @classmethod
    def read(cls, text: str) -> LateSwitch:
        """From "0.82:forward" or "900", where ":bf16" is left out. Raises UsageError for anything else."""
        at, _, to = text.partition(":")
        if (to := to or "bf16") not in TARGETS:
            raise unknown("end of a late switch", to, [f"{at}:{each}" for each in TARGETS])
        if not re.fullmatch(_LATE_SWITCH, f"{at}:{to}", re.ASCII) or ("." in at and float(at) > 1):
            raise UsageError(
                f"a late switch at {text}: {at!r} is neither a fraction of the iterations, 0.0 to 1.0, nor a number "
                "of them; write SWITCH=0.82:forward, or SWITCH=900 (--switch; switch= within --nvfp4)"
            )
        return cls(float(at) if "." in at else int(at), to)

    @classmethod
    def of(cls, word: str | None) -> LateSwitch | None:
        """From a word of `switch_word`; None for never."""
        return None if word in (None, "", NEVER) else cls.read(word)

    def __str__(self) -> str:
        at = f"{self.at:.9f}".rstrip("0") if isinstance(self.at, float) else str(self.at)
        return f"{at}{'0' * at.endswith('.')}:{self.to}"

    def first(self, iterations: int) -> int:
        """How many of the iterations come before it."""
        return round(self.at * iterations) if isinstance(self.at, float) else self.at

    @property
    def precision(self) -> Precision | None:
        """The one that it leads to, None where that is the forward pass's alone."""
        return PRECISIONS.get(self.to)

    def check(self, before: Precision, capability: tuple[int, int]) -> None:
        """Raise UsageError where a GPU of that compute capability cannot go on so from the precision before it."""
        works = f"this GPU has compute capability {packages.dotted(capability)}: --switch {self._replace(to='bf16')}"
        if self.to == "forward" and before.per_tensor and not _multiplies_fp8_columns(capability):
            raise UsageError(
                f"--switch {self}: Transformer Engine quantizes {before.name}, which scales whole tensors, for the "
                f"backward pass alone only on 10.x (its issue 3158), and {works} works, and on Hopper "
                f"--precision fp8_blockwise --switch {self}"
            )
        if self.precision and not self.precision.trains_on(capability):
            raise UsageError(f"--switch {self}: {self.to} needs {self.precision.needs}; {works} works")


def _multiplies_fp8_columns(capability: tuple[int, int]) -> bool:
    """Whether FP8 products take operands in any layout: Transformer Engine's `is_non_tn_fp8_gemm_supported`."""
    return (10, 0) <= capability < (12, 0) or capability >= (13, 0)


def with_switch(precision: Precision, switch: LateSwitch | None) -> Precision:
    """A row that takes the memory of one with a late switch: BF16 weights, and the larger of both activations."""
    if switch is None:
        return precision
    after = switch.precision or precision
    return replace(precision, gather="BF16", saved_bytes=max(precision.saved_bytes, after.saved_bytes))


def switch_word(text: str) -> str:
    """A late switch as it is recorded, or NEVER. Raises UsageError as `LateSwitch.read`."""
    return text if text == NEVER else str(LateSwitch.read(text))
