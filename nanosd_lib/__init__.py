"""NanoSD Notebooks: the thin library behind the numbered notebooks."""

__version__ = "0.2.0"
