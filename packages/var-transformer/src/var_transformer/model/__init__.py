"""The next-scale transformer: its configuration, cells, initialization and operators."""
