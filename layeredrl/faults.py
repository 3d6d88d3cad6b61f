"""Failures at run time of a run whose settings were valid."""


class Fault(RuntimeError):
    """Training cannot continue. The learned state is intact and worth saving."""


class NonFiniteError(Fault):
    """Too many training steps had a non-finite loss or gradient."""
