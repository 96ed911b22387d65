"""A model ready to run, and the ways to run it.

loader                   loads a model, and says what it is
transformers_backend     any family in slots, by its own modules
bart_backend             BART and its kin, layer by layer, without the modules' overhead
bart_cpu_backend         BART and its kin on a CPU, as one compiled program
kv_cache                 keys and values of all slots
row_positions            a position for each row, where families expect one for all
batch_invariance         int8 where torch computes it: no row changes another's numbers
"""
