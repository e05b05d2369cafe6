"""The scaled product's checks and its plain form, without a GPU; tests/gpu has cuBLASLt's."""

import ctypes

import pytest
import torch

from pretraining.numerics import product as products
from pretraining.numerics.product import product


def test_scaled_before_rounding_and_accumulated():
    torch.manual_seed(0)
    a, b = (torch.randint(-8, 9, shape).bfloat16() for shape in ((6, 16), (16, 4)))
    alpha = torch.tensor([0.1234567])
    exact = (a.float() @ b.float()) * alpha
    assert torch.equal(product(a, b, alpha), exact.bfloat16())
    main_grad = torch.ones(6, 4)
    assert product(a, b, alpha, out=main_grad, accumulate=True) is main_grad
    assert torch.equal(main_grad, 1 + exact)


@pytest.mark.parametrize("shape", [(6, 1), (1, 4)])
def test_rows_or_columns_of_the_result_are_scaled(shape):
    torch.manual_seed(1)
    a, b, alpha = torch.randn(6, 16).bfloat16(), torch.randn(16, 4).bfloat16(), torch.randn(shape)
    exact = (a.float() @ b.float()) * alpha
    assert torch.equal(product(a, b, alpha), exact.bfloat16())
    main_grad = torch.ones(6, 4)
    assert torch.equal(product(a, b, alpha, out=main_grad, accumulate=True), 1 + exact)


def test_shapes_must_fit():
    a, b, alpha = torch.ones(6, 16).bfloat16(), torch.ones(8, 4).bfloat16(), torch.ones(1)
    with pytest.raises(ValueError, match=r"no product of shapes \(6, 16\) and \(8, 4\)"):
        product(a, b, alpha)
    with pytest.raises(ValueError, match=r"does not fit \(2, 2\)"):
        product(a, torch.ones(16, 4).bfloat16(), alpha, out=torch.ones(2, 2))
    with pytest.raises(ValueError, match="is added to `out`, and there is none"):
        product(a, torch.ones(16, 4).bfloat16(), alpha, accumulate=True)


class Library:
    """cuBLASLt, which notes what a product's algorithm may be."""

    def __init__(self):
        self.preferences = {}

    def __getattr__(self, name):
        return lambda *_: 0

    def cublasLtMatmulPreferenceSetAttribute(self, preference, attribute, value, size):
        wanted = ctypes.string_at(value, size.value)
        self.preferences[attribute] = int.from_bytes(wanted, "little")
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, *given):
        given[-1]._obj.value = 1
        return 0


def test_cublaslt_is_told_where_matrices_lie_and_to_add_parts_in_fp32(monkeypatch):
    library = Library()
    monkeypatch.setattr(products, "_library", lambda: library)
    monkeypatch.setattr(products, "_handle", lambda device: None)
    products._plan.__wrapped__(32, 64, 128, False, True, torch.bfloat16, torch.device("cpu"), (256, 16, 8))
    # As in cublasLt.h: workspace 1; reduction schemes 3, of which 2 is the compute type; alignments of A to D 5 to 8.
    assert library.preferences == {1: 32 * 2**20, 3: 2, 5: 256, 6: 16, 7: 8, 8: 8}


@pytest.mark.parametrize(("skipped", "multiple"), [(0, 256), (1, 2), (4, 8), (8, 16), (64, 128)])
def test_the_alignment_is_the_addresss(skipped, multiple):
    whole = torch.zeros(4096, dtype=torch.bfloat16)
    first = -(whole.data_ptr() // 2) % 128  # the first element on a multiple of 256 bytes
    assert products._alignment(whole[first + skipped :]) == multiple
