"""The command line: each command starts the flow that its deployment runs, or reads the store."""
