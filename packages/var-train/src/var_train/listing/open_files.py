"""A file that threads read from at offsets, as the shards of images and of tokens are read."""

import os


class OpenFile:
    """A file that is closed when nobody uses it any more, in whatever thread."""

    def __init__(self, number: int) -> None:
        """number: of a descriptor, which this closes."""
        self.number = number

    def read(self, size: int, begin: int) -> bytes:
        """``size`` bytes from ``begin`` on, fewer at the end of the file."""
        parts = []
        while size:
            parts.append(os.pread(self.number, size, begin))
            if not parts[-1]:
                break
            begin, size = begin + len(parts[-1]), size - len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __del__(self) -> None:
        os.close(self.number)
