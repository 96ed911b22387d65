"""What `sidelight kernels` does: checks, times and builds kernels without running a model.

cases                     typical calls of the kernels, for audit, bench and tests
audit                     compiles every case for GPUs that need not be there, and finds problems
audit_cli, audit_report   the options and the output of the audit
bench, bench_cli          times every case on this machine's GPU
prebuild, prebuild_cli    fills Triton's cache ahead of a server
cross_compile             compiles for a GPU that need not be there
disassembly               registers and instructions of compiled kernels
memory_traffic            the bytes that a kernel moves, counted in Triton's interpreter
occupancy                 how many warps a multiprocessor holds
roofline                  the least time that memory and arithmetic allow
"""
