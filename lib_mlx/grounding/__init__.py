"""GUI-Actor: a vision model that points at what an instruction names on a screenshot (arXiv:2506.03143).

Its backbone is Qwen2-VL or Qwen2.5-VL; a small head of its own compares the hidden state of one pointer token with the
image's patches. The outcome is a map of attention over patches, and points made of it.
"""
