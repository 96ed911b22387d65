"""`layout_into` in plain torch: the definition of right, and what runs on a CPU.

A decode step on a CPU has a few hundred numbers, and each torch operation costs more than its arithmetic: so there are
few operations. A prompt has many millions, and copies cost: so whole layers are not stacked, and halves are widened
inside the reductions rather than before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.attention_tensors import AttentionTensors
from ..common.encoding_reference import pack
from ..common.reduction_reference import reduce
from ..common.reductions import Reduction

_SMALL = 4096  # numbers of a layer, below which one reduction of stacked layers beats a reduction for each layer


def layout_reference(
    layers: Sequence[Tensor], out: AttentionTensors, over_heads: Reduction | None, over_layers: Reduction | None
) -> None:
    """Does what `layout_into` does, with arguments that `layout_into` has checked."""
    rows = layout_floats(layers, over_heads, over_layers)
    for to, source in zip(out[:3], pack(rows, out.values.dtype, out.top_k), strict=True):
        if to is not None and source is not None:
            to.copy_(source)


def layout_floats(layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None) -> Tensor:
    """Returns the reduced rows of layers `[B, H, Q, K]` in the layout of a message: float32 `[B, Q, K, columns]`."""
    if over_heads is None:
        # Stacked in their own dtype, which copies the fewest bytes, and widened, if at all, in one more pass.
        rows = torch.stack([layer.permute(0, 2, 3, 1) for layer in layers], 3).flatten(3)
    else:
        if layers[0].numel() < _SMALL:
            reduced = reduce(torch.stack(tuple(layers), 1), over_heads, 2)
        else:
            reduced = torch.stack([reduce(layer, over_heads, 1) for layer in layers], 1)
        rows = reduced.permute(0, 2, 3, 1) if over_layers is None else reduce(reduced, over_layers, 1).unsqueeze(3)
    # torch keeps the order of strided inputs, so a result may not be contiguous.
    return rows.to(torch.float32).contiguous()
