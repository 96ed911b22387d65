"""Programs for CPUs: a decoder's step, an encoder, an output projection, compiled by Numba.

Importing this package compiles nothing and does not import Numba.

program         what a program is made of, and running it
argmax          the greatest score of each row without all scores
decode_step     the attention of one step over slots, apart from any program
jit             what Numba compiles
"""
