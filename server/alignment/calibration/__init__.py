"""Calibration: which heads, features and method link the words of a model's texts best.

ibm_model    IBM model 1: a table of translations of words, learnt from pairs of texts
"""
