"""Training, evaluation and detection over files."""
