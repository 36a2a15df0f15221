"""Ollama's dialect: generate, chat, embeddings and models under /api."""
