"""Reports on sparse networks, and makes smaller models and small files of them."""
