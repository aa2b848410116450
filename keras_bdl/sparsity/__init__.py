"""What sparse networks are for: reports, smaller models, small files."""
