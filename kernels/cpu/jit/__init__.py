"""What Numba compiles: the interpreter of CPU programs, and the operations that it runs.

Importing this package does not import Numba.

opcodes         the numbers of operations and of their fields
interpreter     runs the tasks of operations
thread_pool     threads that share the tasks of an operation
matmul          chooses between the two matrix products
matmul_vector   matrix products in vector instructions
matmul_amx      int8 matrix products in AMX instructions
attention       attention of one query; softmax
primitives      functions of single rows: activations, LayerNorm, quantization
argmax_ops      the greatest score of each row, with error bounds
word_links      scores of pairs of words
llvm            LLVM instructions: vectors, loops, prefetches, arrays at addresses
atomics         numbers that threads share
isa             which instructions the processor has, and the sizes that follow
"""
