"""The ways in which one backward may be run, each of which must give the same clipped sum."""

from typing import Any

MODES = ("auto", "hooks", "ghost", "per_layer", "bounded")
"""The last two are the default mode: with clipping="per_layer", which clips inside the backward; and with a memory
budget of nothing, so that two passes are run (where they can be: else the model is refused)."""


def mode_settings(mode: str) -> dict[str, Any]:
    """Keyword arguments of ``check_exactness`` and ``private_gradients``."""
    if mode == "bounded":
        return {"grad_sample_mode": "auto", "memory_budget": 1}
    if mode == "per_layer":
        return {"grad_sample_mode": "auto", "clipping": "per_layer"}
    return {"grad_sample_mode": mode}
