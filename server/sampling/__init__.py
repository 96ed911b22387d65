"""The next tokens of all slots.

sampler              greedy and sampled tokens of all slots at once
logits_processors    transformers' processors of a request, read as numbers
logits_ops           penalties, bans, temperature, top-k and top-p over many rows
step_scores          probability, entropy and others of each step
"""
