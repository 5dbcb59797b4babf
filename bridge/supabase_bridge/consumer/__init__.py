"""The consumer: resolve, pull and watch releases with nothing but the base installation."""
