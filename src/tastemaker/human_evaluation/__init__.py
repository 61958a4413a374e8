"""Blind comparisons of models by people, as labelling projects: making them, and what they say."""
