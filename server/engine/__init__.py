"""Who runs when, and who gets what: one thread for each model.

engine            the thread: admits jobs, steps them, delivers their events
admission         the requests that wait, and which of them begins next
output_queue      from the engine's thread to an asyncio task, bounded by bytes
output_builder    one job from its source to its last step: the events that it is answered with
batching_delay    a moment's wait when requests come in bursts
"""
