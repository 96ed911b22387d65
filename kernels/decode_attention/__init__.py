"""`decode`: the attention output of one query for each slot, and its rows, in one pass over the keys.

op                the public function: checks its arguments, chooses an implementation
reference         in torch: the definition of right
triton_kernel     in Triton
"""
