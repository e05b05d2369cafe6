"""The scaled product's checks and its plain form, without a GPU; tests/gpu has cuBLASLt's."""

import pytest
import torch

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


def test_shapes_must_fit():
    a, b, alpha = torch.ones(6, 16).bfloat16(), torch.ones(8, 4).bfloat16(), torch.ones(1)
    with pytest.raises(ValueError, match=r"no product of shapes \(6, 16\) and \(8, 4\)"):
        product(a, b, alpha)
    with pytest.raises(ValueError, match=r"does not fit \(2, 2\)"):
        product(a, torch.ones(16, 4).bfloat16(), alpha, out=torch.ones(2, 2))
