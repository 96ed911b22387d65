"""The command line.

main            from a process to a command and its exit status
commands        the commands and their options
attribute       `sidelight attribute`
demo            `sidelight demo`
lines           the texts of a file
interruption    Ctrl-C
"""
