"""Benchmarks of prompts with questions that a vision-language model answers about each image."""
