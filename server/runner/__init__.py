"""What runs: forward passes of sequences.

model_runner        sequences in slots: prefill and decoding, one step of all at a time
unbatched_runner    a sequence with a cache of its own
slot_budget         how many slots there is memory for
thread_tuner        how many threads of a CPU a step uses
warmup              kernels that are compiled before the server serves
"""
