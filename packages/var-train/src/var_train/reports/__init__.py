"""What a run has to show: figures, pictures and its log."""
