"""What the robot's side refuses."""


class BundleError(ValueError):
    """A bundle, or what it was asked, is refused: the message says in one sentence what is wrong, and where."""
