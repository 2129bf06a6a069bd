"""What a person looks at: figures, and one HTML page of them; nothing is fitted here."""
