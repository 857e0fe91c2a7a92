"""The subcommands, one module each: read the arguments, call what does the work, print what it found.

`main(arguments)` reads the arguments before JAX is imported, so that a misspelt one is answered at once.
"""
