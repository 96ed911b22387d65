"""`layout` in plain torch: the definition of right, and what runs on a CPU.

Knows torch and nothing of Triton. Its shapes are `[B, H, Q, K]` for a layer, `[B, L, Q, K]` once heads are reduced.

A decoding step on a CPU runs it on a few hundred numbers, where each torch operation costs more than its arithmetic:
few operations, then. A prompt runs it on many millions, where copies cost: no stack of whole layers, then, and halves
are widened inside the reductions rather than before them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.reduction_reference import reduce
from ..common.reductions import Reduction

_FEW = 4096  # numbers in a layer, below which one reduction of the stacked layers beats a reduction for each


def layout_reference(
    layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None, out_dtype: torch.dtype
) -> Tensor:
    """As `layout` has it, on what `layout` has checked."""
    if over_heads is None:
        # Stacked in the dtype they have: as many bytes as they are, and widened, if at all, in one more pass.
        laid_out = torch.stack([layer.permute(0, 2, 3, 1) for layer in layers], 3)
    else:
        if layers[0].numel() < _FEW:
            reduced = reduce(torch.stack(tuple(layers), 1), over_heads, 2)
        else:
            reduced = torch.stack([reduce(layer, over_heads, 1) for layer in layers], 1)
        laid_out = reduced.permute(0, 2, 3, 1) if over_layers is None else reduce(reduced, over_layers, 1)
    # torch lets results keep the order that strided inputs had: contiguous is no matter of course.
    return laid_out.to(out_dtype).contiguous()
