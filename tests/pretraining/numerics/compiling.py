"""The Triton kernels compiled for GPUs that are not here, by the assembler that Triton brings; run without
TRITON_INTERPRET. Prints a JSON list with a row for each kernel, mode and compute capability."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pretraining.numerics import four_over_six_triton as choice
from pretraining.numerics import nvfp4_triton as kernels

TYPES = {
    "x": "*bf16",
    "of_rows": "*bf16",
    "of_columns": "*bf16",
    "out": "*bf16",
    "amax": "*i32",
    "seed": "*i64",
    "skip": "*fp32",
}
TYPES |= {"scales": "*fp32", "scale_out": "*fp32", "row_scales": "*fp32", "column_scales": "*fp32"}
TYPES |= {"tile_scales": "*fp32", "skip": "*fp32"}
ROUNDING = {"ROWS": True, "COLUMNS": True, "RHT": True, "FOLDED": False, "CHOSEN": False, "BY_ROW": False}
MAXIMA = {"COLUMNS": True, "RHT": True, "BY_ROW": False, "GROUPS": kernels.GROUPS, "SKIPS": False}
CHOICE = {"BLOCKS": choice.ROTATED.value, "SQUARED": True, "BY_ROW": False}
UNFUSED = {"enable_fp_fusion": False}
REGISTERS = {"maxnreg": kernels.REGISTERS}
MODES = {
    "maxima": (kernels._amax_kernel, MAXIMA, {}),
    "maxima by row": (kernels._amax_kernel, MAXIMA | {"BY_ROW": True}, {}),
    "nearest": (kernels._quantize_kernel, ROUNDING | {"STOCHASTIC": False}, REGISTERS),
    "chosen": (
        kernels._quantize_kernel,
        ROUNDING | {"STOCHASTIC": False, "CHOSEN": True},
        {"maxnreg": kernels.REGISTERS},
    ),
    "by row": (kernels._quantize_kernel, ROUNDING | {"STOCHASTIC": False, "BY_ROW": True}, REGISTERS),
    "stochastic": (kernels._quantize_kernel, ROUNDING | {"STOCHASTIC": True}, REGISTERS),
    "tiles": (kernels._tiles_kernel, {"FOLDED": False, "CHOSEN": False, "SKIPS": True}, {}),
    "choice": (choice._choose_kernel, CHOICE, UNFUSED),
    "row choice": (choice._choose_kernel, CHOICE | {"BLOCKS": choice.ROWS.value, "BY_ROW": True}, UNFUSED),
    "tile choice": (choice._choose_kernel, CHOICE | {"BLOCKS": choice.TILES.value}, UNFUSED),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
STRIP = kernels.strips_of(64, 4096)
ELEMENTS = STRIP["WIDTH"] * 16 // (STRIP["num_warps"] * 32)  # a thread


def main() -> None:
    rows = []
    for capability in map(int, sys.argv[1:]):
        for mode, (kernel, constants, options) in MODES.items():
            constants = constants | {name: STRIP[name] for name in ("width", "WIDTH", "WHOLE")}
            types = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
            source = ASTSource(
                kernel,
                types,
                constexprs={
                    (place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants
                },
                attrs={
                    (place,): [["tt.divisibility", 16]]
                    for place, name in enumerate(kernel.arg_names)
                    if name in TYPES or name == "height"
                },
            )
            options = options | {"num_warps": STRIP["num_warps"]}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            rows.append({"capability": capability, "mode": mode, **disassembled(compiled.asm["cubin"])})
    print(json.dumps(rows))


def disassembled(binary: bytes) -> dict[str, float]:
    """Instructions an element, registers a thread, and bytes of them that spill to memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        told = {
            what: subprocess.run([TOOLS / "cuobjdump", what, file.name], capture_output=True, text=True, check=True)
            for what in ("-sass", "-res-usage")
        }
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z]\w*)", told["-sass"].stdout)
    usage = dict(re.findall(r"(REG|STACK):(\d+)", told["-res-usage"].stdout))
    return {
        "instructions": round(sum(opcode != "NOP" for opcode in opcodes) / ELEMENTS, 2),
        "registers": int(usage["REG"]),
        "spilled": int(usage["STACK"]),
    }


if __name__ == "__main__":
    main()
