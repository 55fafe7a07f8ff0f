"""Scores of captions, as the COCO caption evaluation has them: Python and NumPy alone."""
