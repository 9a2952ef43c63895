"""What is learned from: scenes, photographs, and their latents."""
