"""Forks of the process of the tests, which have imported everything already."""

import os
import sys


def fork(work):
    """Fork a process that calls `work`, prints nothing and exits with the returned code; return its number."""
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
