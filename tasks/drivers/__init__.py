"""One module per external tool. Deadlines live here; Prefect does not."""
