"""What the arithmetic is settled to."""

import pytest
import torch

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.precision import choose_precision

CPU = torch.device("cpu")


def test_auto_is_what_the_processor_multiplies_natively():
    assert choose_precision("auto", CPU) == ("bf16" if torch.cpu._is_avx512_bf16_supported() else "no")
    assert choose_precision("auto", torch.device("mps")) == "no"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)
