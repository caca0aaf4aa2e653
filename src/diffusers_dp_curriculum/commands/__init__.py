"""The sub-commands of `dp-curriculum`: each module defines the flags, and a `main` that returns an exit status.

Slow imports stand inside functions, so that `--help` is fast.
"""
