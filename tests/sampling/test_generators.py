import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from tacit.errors import ConfigurationError
from tacit.sampling.generators import check_generator, user_generator


def numbers(generator: torch.Generator) -> list[int]:
    return torch.empty(700, dtype=torch.int64).random_(generator=generator).tolist()


def test_user_generator():
    generator = torch.Generator()
    assert user_generator(DataLoader([1], generator=generator)) is generator
    assert user_generator(DataLoader([1], sampler=RandomSampler([1], generator=generator))) is generator
    assert user_generator(DataLoader([1])) is None


def test_other_than_a_cpu_generator_is_refused():
    with pytest.raises(ConfigurationError, match="drawn on the CPU"):
        check_generator(0)  # type: ignore[arg-type]
