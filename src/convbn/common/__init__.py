"""What every room needs: text for people, JSON, tables, number types, how far something is."""
