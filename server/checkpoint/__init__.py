"""A model's files, checked before anything is made of them, and what is wrong with which of them.

files                which files there are, JSON of the right form, weights in safetensors alone
weights              every tensor: there, of the right shape, finite
model_config         config.json as transformers reads it
generation_config    what every request is decoded by must make sense for the model
tokenizer_files      the tokenizer from its files
fields               which field of a file is to blame, in JSON's words
"""
