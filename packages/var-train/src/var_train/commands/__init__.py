"""What the commands share: the settings of a run, its command line, and presets."""
