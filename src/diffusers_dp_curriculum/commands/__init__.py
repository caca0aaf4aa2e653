"""The sub-commands of `dp-curriculum`: each module has the flags, and a `main` that returns an exit status.

What computes is imported within functions, so that `--help` answers at once.
"""
