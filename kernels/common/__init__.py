"""What the operations share. It imports none of them.

dispatch              chooses between Triton kernels and torch references
launch                a launch of a Triton kernel as a value: recorded, compiled ahead of time, audited
reductions            the names and meanings of reductions over heads and layers
attention_params      what decides probabilities besides queries and keys: scale, bias, masks, soft caps
attention_tensors     the tensors that kernels fill, and what one layer writes into them
key_weighting         which keys a row leaves out, and factors of the others
attention_reference   probabilities in torch, a tile of queries at a time
write_reference       writes probabilities into the tensors, in torch
encoding_reference    bytes and top-k, in torch
reduction_reference   reductions, in torch
triton_scores         tiles of scores, in Triton
triton_reduce         folds over heads and layers, bytes and sort keys, in Triton
triton_output         where numbers go and how encoded rows are stored, in Triton
triton_versions       what differs between Triton's versions
"""
