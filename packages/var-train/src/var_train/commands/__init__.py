"""What the commands of this package share: their command line and the presets."""
