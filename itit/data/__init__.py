"""Records, order, pictures, texts: what becomes the batch of a step. Nothing here knows torch."""
