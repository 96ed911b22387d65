"""`layout_into`: whole attention matrices of a model, reduced and laid out as a message has them.

op                the public functions: check their arguments, choose an implementation
reference         in torch: the definition of right
triton_kernel     in Triton
"""
