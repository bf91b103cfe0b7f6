"""Walking autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def nodes_behind(roots: Iterable[Any], beyond: Iterable[Any] = ()) -> Iterator[Any]:
    """Every node of the graph behind ``roots``, and these, once; what lies at or behind ``beyond`` is left out."""
    pending, seen = list(roots), set(beyond)
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(edge[0] for edge in node.next_functions)
