"""Sampling, labelling, reward model and alignment, again and again (`tastemaker iterate`)."""
