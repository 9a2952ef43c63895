"""Every network that is loaded, built or counted."""
