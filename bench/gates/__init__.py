"""Gates: conditions under which a result fails; those on time must fail in two runs."""
