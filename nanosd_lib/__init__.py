"""NanoSD Notebooks: the thin library behind the numbered notebooks."""

import warnings

__version__ = "0.1.0"
# a dependency's own business while it is imported, on top of every executed page
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
