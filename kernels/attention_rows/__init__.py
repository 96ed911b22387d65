"""`rows`: the attention rows of prompts and given targets, reduced, without a matrix of them in memory.

op                the public function: checks its arguments, chooses an implementation
reference         in torch: the definition of right
triton_kernel     in Triton
"""
