"""Re-ranking of retrieved lists: by what entities say of each candidate, and by whether it finds the query in turn."""
