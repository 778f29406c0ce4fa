"""cryptows: the last mile of a trading bot, from a local Unix socket to browsers and bots."""

__version__ = "0.1.0"
