"""Rewards: plain functions of pictures and prompts."""
