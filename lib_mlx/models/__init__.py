"""Checkpoints: where they live, what they hold, how they are loaded."""
