from .overview import preflight as preflight
