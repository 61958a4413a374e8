"""Images sampled by a rollout engine on other machines, with this package's own weights and log-probabilities."""
