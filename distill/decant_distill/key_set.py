"""A set of request keys in a few bytes each, so that a job of a million rows stays small."""

from array import array

_FIRST_SLOTS = 1024


class KeySet:
    """Remembers hex SHA-256 keys by their first 128 bits, in two machine words each.

    Two keys of a job of a million are alike in those with a probability of 10^-27. A Python set of the same
    keys takes ten times the memory.
    """

    def __init__(self) -> None:
        self._slots = _FIRST_SLOTS
        self._words = array("Q", bytes(16 * self._slots))
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: str) -> bool:
        """Remembers a key; says whether it was new."""
        first, second = int(key[:16], 16), int(key[16:32], 16)
        # A second word of nought marks a free slot.
        if not self._place(first, second or 1):
            return False
        self._size += 1
        if self._size * 2 > self._slots:
            self._grow()
        return True

    def _place(self, first: int, second: int) -> bool:
        words, slots = self._words, self._slots
        slot = first % slots
        while words[2 * slot + 1]:
            if words[2 * slot] == first and words[2 * slot + 1] == second:
                return False
            slot = (slot + 1) % slots
        words[2 * slot], words[2 * slot + 1] = first, second
        return True

    def _grow(self) -> None:
        old = self._words
        self._slots *= 2
        self._words = array("Q", bytes(16 * self._slots))
        for place in range(0, len(old), 2):
            if old[place + 1]:
                self._place(old[place], old[place + 1])
