"""What cannot be used: named, counted, and no more of it than was allowed."""

import sys

import tqdm

NAMED = 20  # that are shown


class Damage:
    """Damaged things so far.

    Args:
      limit: how many there may be; of the flag --max_bad_records.
      what: what they are, for messages.
      further: where to look for those that are not shown.
      shown: name them on stderr.
    """

    def __init__(self, limit, what, further="", shown=True):
        self.limit, self._what, self._further, self._shown, self.count = limit, what, further, shown, 0

    def add(self, cause):
        """One more. Raises ValueError, one line, where there are too many."""
        self.count += 1
        if self.count > self.limit:
            raise ValueError(f"{cause} (damaged {self._what} so far: {self.count}, above "
                             f"--max_bad_records={self.limit})")  # fmt: skip
        if self.count <= NAMED and self._shown:
            tqdm.tqdm.write(f"damaged: {cause}", file=sys.stderr)
        if self.count == NAMED and self._shown:
            tqdm.tqdm.write(f"damaged: {self._further or 'further ones are only counted'}", file=sys.stderr)
