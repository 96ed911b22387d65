"""Commands of the command line that the server has.

serve      `sidelight serve`
kernels    `sidelight kernels`
"""
