"""Anthropic's dialect: Messages, counting of tokens and models."""
