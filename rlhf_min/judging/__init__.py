"""Judges that compare two answers to one prompt; a reader of the training loops may skip it."""
