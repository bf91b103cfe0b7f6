"""A model that ends in a function of its layer's output."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Behind(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))
