"""What is on disk: the one contract between recording and analysis."""
