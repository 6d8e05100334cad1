"""The flows of GBS: what operators start, schedule and watch. One file per flow, named after the stage."""

import logging

# The root logger stays quiet, or every request to Prefect's API would be a line.
for _name in ("flows", "tasks", "blocks"):
    logging.getLogger(_name).setLevel(logging.INFO)
