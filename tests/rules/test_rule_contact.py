from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tacit.errors import LayoutError, MixingError, NoRuleError, PrivacyError
from tacit.rules.contact import detached, refuse_double_backward


def test_detached_keeps_the_storage_and_nothing_else() -> None:
    p = nn.Parameter(torch.ones(3))
    assert detached(None) is None
    value = detached(p)
    assert value is not None
    assert value.data_ptr() == p.data_ptr()
    assert not value.requires_grad


def test_double_backward_is_refused_only_while_a_graph_is_recorded() -> None:
    with torch.no_grad():
        refuse_double_backward()
    with pytest.raises(NoRuleError, match="create_graph=True"):
        refuse_double_backward()


def test_a_call_without_a_rule_names_module_parameter_and_function(exact_auto: Any) -> None:
    with pytest.raises(
        NoRuleError,
        match=r"(?s)`kron` on `w` \(4, 5\) \(in the model, Op\.forward\).*unclipped.*Freeze.*neither the mean",
    ):
        exact_auto.private(lambda x, w: torch.kron(x, w).sum().exp(), torch.randn(3, 5), w=(4, 5))


def test_a_derived_parameter_is_named_by_its_source(exact_auto: Any) -> None:
    with pytest.raises(NoRuleError, match="a tensor computed from `w`"):
        exact_auto.private(lambda x, w: torch.kron(x, w * 2).sum().exp(), torch.randn(3, 5), w=(4, 5))


def test_a_batch_in_the_features_is_refused(exact_auto: Any) -> None:
    with pytest.raises(MixingError, match=r"the batch lies in dimension 1 of an input of shape \(4, 4\)"):
        exact_auto.private(lambda x, w: F.linear(x.t(), w), torch.randn(4, 4), w=(4, 4))


def test_a_lost_batch_is_refused_and_the_call_that_lost_it_is_named(exact_auto: Any) -> None:
    with pytest.raises(LayoutError, match="in `mean`"):
        exact_auto.private(lambda x, w: x + F.linear(x.mean(0), w), torch.randn(4, 4), w=(4, 4))


def test_a_trainable_tensor_that_is_no_parameter_is_refused(exact_auto: Any) -> None:
    stranger = torch.randn(4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(PrivacyError, match="was not a parameter of the model"):
        exact_auto.private(lambda x, w: x * w * stranger, torch.randn(3, 4), w=(4,))
