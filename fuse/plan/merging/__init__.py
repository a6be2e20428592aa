"""Linear branches that are summed, and layers in a row, become one layer where that costs less."""
