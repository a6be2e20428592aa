"""State dicts before and after a fold, and modules rebuilt from them."""
