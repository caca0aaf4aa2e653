"""What the library tells a person while it works, as the command line shows it."""

import logging


class _Printing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def show_messages() -> None:
    """Print the messages of this package's loggers as they are, from the level of information on."""
    logger = logging.getLogger(__package__)
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printing) for handler in logger.handlers):
        logger.addHandler(_Printing())
