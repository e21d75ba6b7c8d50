"""Models, tokens, sampling, log-probs and scores: the steps that the training loops call."""
