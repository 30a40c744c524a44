"""What a language model knows, turned into knowledge files; the server reads those and never comes here."""
