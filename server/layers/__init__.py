"""Replacements of single layers.

packed_linear    linear layers on a CPU, each by the fastest kernel at load
fused_qkv        queries, keys and values as one product
lm_head          the output projection, apart from the model
screened_head    the greatest score without reading all weights
"""
