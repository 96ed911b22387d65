"""The commands that start the server's code.

serve      `sidelight serve`
kernels    `sidelight kernels`
"""
