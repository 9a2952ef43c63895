"""NanoSD Notebooks: the thin library behind the numbered notebooks."""

__version__ = "0.1.0"
