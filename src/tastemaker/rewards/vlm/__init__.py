"""Rewards that call a vision-language model, in this process or on any server that speaks OpenAI's protocol."""
