"""What float16 cannot hold: values beyond its range, and values that it turns to 0."""
