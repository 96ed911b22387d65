"""What Numba compiles: the interpreter of programs, and the operations that it runs.

Importing this package does not import Numba.

opcodes           the numbers of operations and of their fields
interpreter       runs a program's table of operations
thread_pool       threads that share the tasks of an operation
matmul            which matrix product runs
matmul_vector     matrix products in vector instructions
matmul_amx        matrix products of bytes in AMX instructions
attention         attention over slots and over sources
primitives        normalization, activations, softmax
argmax_ops        the greatest score of rows, with bounds
isa               vectors, loads, stores, atomics, and which instructions the processor has
"""
