"""The Triton kernels against the specification: under Triton's interpreter, or on a GPU where there is one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this machine")

from pretraining.numerics import nvfp4, nvfp4_triton
from pretraining.request.recipe.nvfp4_recipe import Rounding

CASES = torch.load(Path(__file__).parents[2] / "vectors" / "nvfp4_reference.pt")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Whole strips of whole blocks, as in training; of pairs of blocks, which the maxima read, the first has one and a half.
WHOLE = [(48, 256)] if DEVICE == "cpu" else [(48, 256), (4096, 1024)]
# Random tensors are larger where they cost nothing but the compilation of their widths.
SHAPES = [(33, 528), (5, 32), *WHOLE] + ([] if DEVICE == "cpu" else [(4096, 528), (1000, 14336)])

pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value", "ignore:underflow"),
]


def quantize(x, rht=False, seed=None, **options):
    return nvfp4_triton.quantize(x, Rounding(rht=rht, stochastic=seed is not None), seed=seed, **options)


def quantize_tiles(x, **options):
    rows, columns = nvfp4_triton.quantize(x, Rounding((16, 16)), **options)
    assert rows is columns
    return rows


def bits(x):
    return x.float().contiguous().view(torch.int32)


def assert_equal(found, specified, *, transposed=False):
    values = specified.values.T if transposed else specified.values
    assert found.values.dtype == torch.bfloat16 and torch.equal(bits(found.values), bits(values))
    scale = specified.tensor_scale
    assert torch.equal(bits(found.scale), bits(scale.T if transposed and scale.ndim == 2 else scale))


def padded(x):
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 16))


def sample(shape, kind):
    """A random matrix, and behind its end NaN, which would be seen in every result that was made with it."""
    torch.manual_seed(sum(shape))
    x = torch.randn(shape)
    if kind == "wide":
        x *= torch.exp(4 * torch.randn(shape))
    elif kind == "tiny":  # encode overflows; not below the normal numbers, which the interpreter reads wrongly
        x = x.sign() * (1 + x.abs()) * 1e-37
    return torch.cat((x, torch.full((32, shape[1]), torch.nan))).bfloat16().to(DEVICE)[: len(x)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_transformer_engines_vectors(case):
    x = case["x"].bfloat16().to(DEVICE)
    if case["tile"] == (16, 16):
        rows = columns = quantize_tiles(x)
    else:
        rows, columns = quantize(x, rht=case["rht"])
    for found, side in ((rows.values * rows.scale, "row"), ((columns.values * columns.scale).T, "col")):
        assert torch.equal(bits(found.cpu()), bits(case[f"{side}_dequantized"]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "rht", "folded"), [("normal", True, True), ("wide", True, False), ("tiny", False, True)]
)
def test_equals_the_specification(shape, kind, rht, folded):
    x = sample(shape, kind)
    rows, columns = quantize(x, rht=rht, folded=folded)
    assert_equal(rows, nvfp4.quantize(x, folded=folded))
    assert_equal(columns, nvfp4.quantize(padded(x).T.contiguous(), Rounding(rht=rht), folded=folded), transposed=True)
    assert_equal(quantize_tiles(x, folded=folded), nvfp4.quantize(x, Rounding((16, 16)), folded=folded))


@pytest.mark.parametrize(("by", "kind", "rht"), [("mae", "normal", True), ("mse", "wide", False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_over_six_equals_the_specification(shape, by, kind, rht):
    x = sample(shape, kind)
    how, tiles = Rounding(rht=rht, four_over_six=by), Rounding((16, 16), four_over_six=by)
    rows, columns = nvfp4_triton.quantize(x, how)
    assert_equal(rows, nvfp4.quantize(x, how.of_rows))
    assert_equal(columns, nvfp4.quantize(padded(x).T.contiguous(), how), transposed=True)
    assert_equal(nvfp4_triton.quantize(x, tiles)[0], nvfp4.quantize(x, tiles))


@pytest.mark.parametrize(("by", "kind", "rht"), [("", "wide", True), ("", "normal", False), ("mse", "wide", True)])
@pytest.mark.parametrize("shape", [SHAPES[0], *WHOLE], ids=str)
def test_scales_by_row_equal_the_specification(shape, by, kind, rht):
    x, how = sample(shape, kind), Rounding(rht=rht, four_over_six=by, by_row=True)
    rows, columns = nvfp4_triton.quantize(x, how, folded=True)
    assert_equal(rows, nvfp4.quantize(x, how.of_rows, folded=True))
    assert_equal(columns, nvfp4.quantize(padded(x).T.contiguous(), how, folded=True), transposed=True)


def test_a_block_scale_is_divided_by_six_exactly():
    # Every BF16 magnitude as the largest of a block; the kernel divides without a division.
    every = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[(every >= 2.0**-100) & every.isfinite()].float()
    first = 43690.0 / 2.0**18
    assert torch.equal(every * first + every * (1 / 6 - first), nvfp4._divide(every, 6.0))


def test_one_of_the_two_equals_both():
    x = sample((20, 64), "normal")
    both = quantize(x, rht=True)
    rows, none = quantize(x, rht=True, columns=False)
    assert none is None and torch.equal(rows.values, both[0].values) and torch.equal(rows.scale, both[0].scale)
    none, columns = quantize(x, rht=True, rows=False)
    assert none is None and torch.equal(columns.values, both[1].values) and torch.equal(columns.scale, both[1].scale)


def test_tiles_are_written_into_an_earlier_result():
    x = sample((20, 64), "normal")
    earlier = quantize_tiles(sample((20, 64), "wide"))
    again = quantize_tiles(x, out=earlier)
    assert again.values.data_ptr() == earlier.values.data_ptr()
    assert_equal(again, nvfp4.quantize(x, Rounding((16, 16))))


def test_a_flag_on_the_device_keeps_an_earlier_result():
    x, flag = sample((20, 64), "normal"), torch.ones(1, device=DEVICE)
    earlier = quantize_tiles(sample((20, 64), "wide"))
    values, scale = earlier.values.clone(), earlier.scale.clone()
    kept = quantize_tiles(x, out=earlier, skip=flag)
    assert torch.equal(bits(kept.values), bits(values)) and torch.equal(kept.scale, scale)
    assert_equal(quantize_tiles(x, out=earlier, skip=flag.zero_()), nvfp4.quantize(x, Rounding((16, 16))))


def test_results_do_not_depend_on_how_a_matrix_is_cut_into_programs(monkeypatch):
    x = sample((40, 768), "wide")  # in strips of half a program's width, or in two of which the last is half empty
    narrow = quantize(x, rht=True, seed=seed(5))
    wide = {"width": x.shape[1], "WIDTH": 512, "WHOLE": False, "num_warps": 4}
    monkeypatch.setattr(nvfp4_triton, "strips_of", lambda height, width, groups=1: wide)
    monkeypatch.setattr(nvfp4_triton, "count_programs", lambda height, width, groups=1: -(-height // 16 // groups) * 2)
    for one, other in zip(narrow, quantize(x, rht=True, seed=seed(5)), strict=True):
        assert torch.equal(bits(one.values), bits(other.values)) and torch.equal(one.scale, other.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_element_beside_a_nan_or_infinity_is_finite(bad):
    x = torch.ones(32, 32, device=DEVICE).bfloat16()
    x[3, 4] = bad
    for each in (*quantize(x, rht=True), quantize_tiles(x)):
        assert not (each.values.float() * each.scale).isfinite().any()


def test_empty_and_misshapen():
    x = torch.empty(0, 32, device=DEVICE)
    for found in (*quantize(x), quantize_tiles(x)):
        assert found.values.shape == (0, 32) and found.scale.tolist() == [0.0], "as the specification has it"
    with pytest.raises(ValueError, match="divisible by 16, found 24"):
        quantize(torch.ones(16, 24, device=DEVICE))
    with pytest.raises(ValueError, match="a matrix"):
        quantize_tiles(torch.ones(2, 16, 16, device=DEVICE))


def seed(number):
    return torch.tensor([number], device=DEVICE)


def test_stochastic_rounding_is_unbiased():
    # One number many times: the block scale is exact (a 6 leads each block), the mean of the rest tells the bias.
    below, above, number = 1.0, 1.5, 1.1328125
    x = torch.full((64, 512), number, device=DEVICE).bfloat16()
    x[:, ::16] = 6.0
    x[::16] = 6.0
    free = torch.ones_like(x, dtype=torch.bool)
    free[:, ::16] = free[::16] = False
    for each in quantize(x, seed=seed(1)):
        values = each.values.float()[free]
        assert set(values.unique().tolist()) == {448 * below, 448 * above}
        up = (number - below) / (above - below)
        deviation = (up * (1 - up) / values.numel()) ** 0.5
        assert abs((values == 448 * above).double().mean() - up) < 4 * deviation
        assert (each.values[:, ::16].float() == 6 * 448).all(), "numbers on the grid must stay"


def test_a_seed_repeats_and_others_and_streams_differ():
    x = sample((16, 512), "normal")
    first = quantize(x, rht=True, seed=seed(5))
    for again, once in zip(quantize(x, rht=True, seed=seed(5)), first, strict=True):
        assert torch.equal(again.values, once.values)
    for other in (quantize(x, rht=True, seed=seed(6)), quantize(x, rht=True, seed=seed(5), stream=1)):
        for one, once in zip(other, first, strict=True):
            assert not torch.equal(one.values, once.values) and torch.equal(one.scale, once.scale)


def test_rows_and_columns_round_independently():
    # Half-way numbers round up in half of all places; in both layouts at once, in a quarter.
    x = torch.full((64, 512), 2.5, device=DEVICE).bfloat16()
    x[:, ::16] = 6.0
    x[::16] = 6.0
    rows, columns = quantize(x, seed=seed(3))
    up = [(each.values.float() == 448 * 3.0).reshape(4, 16, 32, 16)[:, 1:, :, 1:] for each in (rows, columns)]
    both = (up[0] & up[1]).double().mean()
    assert abs(both - 0.25) < 4 * (0.25 * 0.75 / up[0].numel()) ** 0.5


def test_they_compile_for_gpus_that_are_not_here(environment, tmp_path):
    """What the interpreter cannot tell: PTX that the assembler takes, and what makes a kernel slow."""
    backend = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia"
    if not (backend / "bin" / "cuobjdump").exists():
        pytest.skip("this Triton brings no disassembler")
    script = Path(__file__).with_name("compiling.py")
    ended = subprocess.run(
        [sys.executable, script, "90"],
        env=environment(TRITON_CACHE_DIR=str(tmp_path)), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    # Triton 3.7.1: 9.8, 36.5, 40.1, 14.2, 69.9 and 64.8 instructions an element, and by row
    # 16.2, 52.2 and 64.6. Other versions may need a few more.
    most = {"maxima": 11.0, "nearest": 40.0, "stochastic": 43.5, "tiles": 16.0}
    most |= {"chosen": 37.0, "choice": 76.0, "tile choice": 72.0}
    most |= {"maxima by row": 18.0, "by row": 57.0, "row choice": 71.0}
    rows = json.loads(ended.stdout)
    assert {row["mode"] for row in rows} == set(most)
    for row in rows:
        assert row["instructions"] <= most[row["mode"]] and row["spilled"] <= 64, row
        assert row["registers"] <= (192 if row["mode"] == "row choice" else 168), row
