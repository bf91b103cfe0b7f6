import pytest


@pytest.fixture(autouse=True, scope="session")
def _quiet_transformers() -> None:
    """Loaded only when a model is tested: importing transformers takes seconds."""
    import transformers

    transformers.logging.set_verbosity_error()
