"""What is shown of many models at once: progress, one table, reports."""
