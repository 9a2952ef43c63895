"""How a picture or a network is judged; nothing here trains."""
