"""Servers that people start at the terminal: in the foreground, or as a service in the background."""
