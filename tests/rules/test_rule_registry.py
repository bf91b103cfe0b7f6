import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tacit.errors import ConfigurationError
from tacit.rules import find_rule
from tacit.rules.registry import methods, rule_for


def test_known_functions_have_rules() -> None:
    for function in (F.linear, torch.addmm, F.conv2d, F.embedding, F.layer_norm, F.rms_norm, torch.cat, Tensor.add_):
        assert find_rule(function) is not None, function


def test_unknown_functions_have_none() -> None:
    assert find_rule(torch.kron) is None


def test_a_function_has_one_rule() -> None:
    before = find_rule(F.linear)
    with pytest.raises(ConfigurationError, match="has a rule already"):
        rule_for(F.linear)(lambda contact: None)
    assert find_rule(F.linear) is before


def test_methods_are_collected_once() -> None:
    found = methods(["add", "matmul", "no_such_function"], torch, Tensor)
    assert torch.add in found
    assert Tensor.matmul in found
    assert len(found) == len(set(found)) == 4
