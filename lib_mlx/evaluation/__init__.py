"""How well a model predicts a text, and how far another one is from it."""
