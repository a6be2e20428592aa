"""Broken inputs of our own making, and what convbn does with them."""
