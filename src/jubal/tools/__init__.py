"""What the model may use while it answers. One file or folder per family; agent/ decides when they run."""
