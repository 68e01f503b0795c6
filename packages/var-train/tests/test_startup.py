"""What a run says of the time to its first step."""

import logging
import subprocess
import sys
import time

from var_train.reports.startup import Startup

AGE = """
import time
from var_train.reports.startup import process_age
time.sleep(0.2)
print(process_age())
"""


def test_the_parts_of_the_time_to_the_first_step_are_named_once(caplog):
    caplog.set_level(logging.INFO)
    startup = Startup(3.0)
    for part in ("models", "data", "models"):
        startup.end(part)
    startup.end_first_step()
    startup.end("of a second stage")
    startup.end_first_step()
    [said] = caplog.messages
    assert said.startswith("first step after 3.0 s: 3.0 s imports, 0.0 s ")
    assert said.count(" s models") == said.count(" s data") == 1
    assert " s compilation and the step itself" in said and "second" not in said


def test_a_process_knows_how_long_ago_it_began():
    begin = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", AGE], capture_output=True, check=True).stdout
    assert 0.19 <= float(shown) <= time.monotonic() - begin + 0.02  # the system counts in 0.01 s
