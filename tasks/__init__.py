"""The work of GBS: Prefect tasks here, tools in `drivers`, rules in `model`."""
