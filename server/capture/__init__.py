"""Attention rows while a model runs.

attention_function    the function that transformers calls for attention
attention_layers      finds a model's attention layers, and verifies their rows
plan                  what one request keeps
arrays                attention on the host
"""
