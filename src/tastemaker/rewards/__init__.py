"""Rewards: plain functions of images and prompts."""
