"""What GBS costs beside the same work done by hand with the same tools, measured side by side in one run."""
