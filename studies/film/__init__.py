"""Film reviews with few examples, and three other domains that help: one head for all."""
