"""What several tests of probes need."""

import pytest

from hybridnorm.model.transformer import Transformer
from probed import small


@pytest.fixture(params=["hybridnorm-star", "post-norm", "olmo2", "pre-norm"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return small(request.param)
