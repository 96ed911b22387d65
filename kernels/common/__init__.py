"""What the operations share. Imports none of them.

dispatch              which implementation runs: Triton's kernels or the reference
launch                a kernel's launch as a value: recorded, compiled ahead, counted
reductions            the names of reductions over heads and layers
attention_params      how scores are made: scale, bias, masks, windows, caps
attention_tensors     the tensors of a result, and which part of them a layer fills
attention_reference   probabilities, a tile of queries at a time, in torch
write_reference       writes probabilities into a result, in torch
encoding_reference    bytes and greatest positions, in torch
reduction_reference   reductions, in torch
triton_scores         tiles of scores, in Triton
triton_reduce         folds over heads and layers, in Triton
triton_output         heads side by side, sorting, packing, in Triton
triton_versions       what differs between Triton's versions
"""
