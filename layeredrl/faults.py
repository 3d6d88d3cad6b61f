"""What can go wrong in a long run without anybody having made a mistake at its start."""


class Fault(RuntimeError):
    """Training cannot go on. What has been learned is whole, so that it is worth saving."""


class NonFiniteError(Fault):
    """Too many training steps had a loss or gradient that is not a finite number."""
