"""Copies of the process of the tests, which have imported everything already."""

import os
import sys


def fork(work):
    """The number of a copy of this process that does `work`, prints nothing, and exits with what it returns."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = work() or 0
        finally:
            os._exit(code)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
