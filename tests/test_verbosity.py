"""What is logged, and from which level on it is shown."""

import logging
import os
import subprocess
import sys

import pytest

from diffusers_dp_curriculum import InputError, set_verbosity


SCRIPT = """
import logging, diffusers_dp_curriculum
logging.getLogger("diffusers_dp_curriculum.sharing.hub").info("Pushed.")
logging.getLogger("diffusers_dp_curriculum.sharing.hub").warning("Careful.")
"""


def shown(**environment):
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert finished.stdout == ""
    return [word for word in ("Pushed.", "Careful.") if word in finished.stderr]


def test_the_environment_sets_what_is_shown():
    assert shown() == ["Careful."]
    assert shown(DP_CURRICULUM_VERBOSITY="info") == ["Pushed.", "Careful."]
    assert shown(DP_CURRICULUM_VERBOSITY="error") == []
    assert shown(DP_CURRICULUM_VERBOSITY="loud") == ["Careful."]


def test_verbosity_in_python(caplog):
    library = logging.getLogger("diffusers_dp_curriculum")
    before = library.level
    try:
        set_verbosity("error")
        logging.getLogger("diffusers_dp_curriculum.trainer").warning("not shown")
        set_verbosity("info")
        logging.getLogger("diffusers_dp_curriculum.trainer").info("shown")
    finally:
        library.setLevel(before)
    assert [record.message for record in caplog.records] == ["shown"]


def test_a_level_that_there_is_not_is_refused():
    with pytest.raises(InputError, match='verbosity is "loud": choose one of debug, info'):
        set_verbosity("loud")
