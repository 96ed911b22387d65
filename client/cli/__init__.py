"""The command line. Nothing is imported here: see `main`.

main                 the process: from its arguments to a command and an exit status
commands/            the parser: commands, their arguments and their help; short commands
attribute            `sidelight attribute`
attribute_options    the arguments of `sidelight attribute`
connection_options   those of all commands that connect to a server
decoding_options     those for decoding
contrast_options     those for a second context
attribute_file       `sidelight attribute --file`
align                `sidelight align`
follow               `sidelight follow`
demo                 `sidelight demo`
sources              what a text or a line describes: token ids, a chat, features
lines                reads the lines of a file
interruption         handles Ctrl-C
"""
