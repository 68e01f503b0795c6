"""What a run shows: its progress and log, the figures it reports, and the images it draws."""
