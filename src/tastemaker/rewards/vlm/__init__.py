"""Rewards that ask a vision-language model, in the process or on any server that speaks OpenAI's protocol."""
