"""What a run shows: progress and log, the figures it reports, and the images it draws."""
