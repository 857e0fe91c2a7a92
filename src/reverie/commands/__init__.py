"""The subcommands, one module each: read the arguments, call what does the work, print what it found.

Every module has `parse(arguments)`, which gives a dataclass of what was asked for, and `main(arguments)`.
"""
