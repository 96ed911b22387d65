"""What `pack_weight` refuses."""

from __future__ import annotations

import pytest
import torch
from sidelight.kernels.cpu import is_supported, pack_weight

pytestmark = pytest.mark.skipif(not is_supported(), reason="no programs on this machine")


def test_weights_of_other_dtypes_are_refused():
    for weight, channel_scales in ((torch.zeros(2, 2).half(), None), (torch.zeros(2, 2), torch.ones(2))):
        with pytest.raises(ValueError, match=r"^weight:"):
            pack_weight(weight, channel_scales)
