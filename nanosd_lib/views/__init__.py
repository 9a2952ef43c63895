"""What a reader looks at; tables in, figures out."""
