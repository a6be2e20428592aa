"""Gates: conditions under which a result fails, judged without crying wolf."""
