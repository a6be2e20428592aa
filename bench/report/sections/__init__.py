"""What a report of a measurement consists of, section by section, and the drawings in them."""
