"""`sidelight kernels`: what is known of the kernels without running a model.

cli               the subcommands
cases             the kernels as they are used: for audit, bench and build
audit, audit_cli  compiles every case for GPUs that need not be there, and says what is wrong
bench, bench_cli  times every case on this machine's GPU
prebuild, prebuild_cli   fills Triton's cache ahead of a server
cross_compile     compiles for a GPU that is not there
disassembly       instructions and registers of compiled kernels
memory_traffic    bytes that a kernel moves, counted in Triton's interpreter
occupancy         how many warps a multiprocessor holds
roofline          the least time that memory and arithmetic allow
"""
