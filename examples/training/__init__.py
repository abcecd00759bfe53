"""What train_kat.py is made of: images, weights to start from, and what timm adds."""


class Refused(Exception):
    """What was asked for cannot be done; the message says why."""
