"""From a socket to the pipeline and back."""
