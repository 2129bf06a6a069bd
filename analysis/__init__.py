"""What a sweep has taught: frames, laws, curves, plans and reports.

What it offers stands in ``__init__.pyi``, and is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
