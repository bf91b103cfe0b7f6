import pytest
import torch

from tacit.uses import Asked, Product
from tacit.uses.formed import BLOCK, formed_at_once, product_squares


def expected(left, right):
    return torch.stack([(a.double().t() @ b.double()).square().sum() for a, b in zip(left, right, strict=True)])


@pytest.mark.parametrize("samples", [1, 5, 8])
@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 4), (150, 700), (600, 512)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_of_products(samples, rows, columns, dtype):
    torch.manual_seed(0)
    left, right = torch.randn(samples, 6, rows, dtype=dtype), torch.randn(samples, 6, columns, dtype=dtype)
    found = product_squares(left, right)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected(left, right), rtol=1e-14 if dtype == torch.float64 else 1e-6, atol=0)


def test_strided_factors():
    torch.manual_seed(0)
    left, right = torch.randn(7, 5, 300).transpose(0, 1), torch.randn(5, 200, 7).transpose(1, 2)
    torch.testing.assert_close(product_squares(left, right), expected(left, right), rtol=1e-6, atol=0)


def test_as_many_at_once_as_stay_in_the_cache():
    assert formed_at_once(8, 1000, 1000, 4) == 1
    assert formed_at_once(8, 64, 64, 8) == 8
    assert formed_at_once(100, 128, 128, 4) == BLOCK // 2**16
    product = Product(100, 5, 128, 128, 4, 1, Asked.NORM)
    assert product.held(7) == {"gram": product.grams, "stored": BLOCK}
    assert product._replace(asked=Asked.BOTH).held(7) == {"gram": 7, "stored": product.whole}
