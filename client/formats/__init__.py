"""Attributions in files.

save     Inseq's JSON, NumPy's npz, or a page: the suffix says which
inseq    Inseq's file format
"""
